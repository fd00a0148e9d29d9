"""Zero-shot CLIP: nothing is learned.

python main.py --config=configs/zeroshot.py

The bundled CLIP gets 12.4 % on the bundled digits, 31.4 % on Twitter-style emoji and 43.2 % on
Google's. See docs/measurements.md.
"""

from ml_collections import ConfigDict

from dpt_jax.configs import common


def get_config(arg: str = common.DEFAULT_DATASET) -> ConfigDict:
    """Return the configuration of DATASET[:PROTOCOL]."""
    dataset, _ = common.parse(arg)
    config = common.get_config()
    config.method = "zeroshot"
    return common.on_dataset(config, dataset)
