"""SS-Text: prototypes in closed form from texts and training images; nothing is trained.

python main.py --config=configs/sstext.py

The default, 16 shots of the bundled digits, gets 37.6 ± 0.9 % (five seeds) and takes seconds.
See docs/measurements.md. The paper's datasets have not been measured.

Formula from jusiro/SS-Text. --config.classifier.name=sstext_plus and sstext_confidence are the two
other forms of its code.
"""

from ml_collections import ConfigDict

from dpt_jax.configs import common


def get_config(arg: str = common.DEFAULT_DATASET) -> ConfigDict:
    """Return the configuration of DATASET[:PROTOCOL]."""
    dataset, _ = common.parse(arg)
    config = common.get_config()
    config.method = "sstext"
    config.clip.weights = "openai/clip-vit-base-patch16"
    config.classifier.name = "sstext"
    return common.on_dataset(config, dataset)
