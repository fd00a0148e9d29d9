"""CoCoOp: a context with an offset that a small network computes from the image.

python main.py --config=configs/cocoop.py

The default, 16 shots of the bundled digits, gets 24.7 ± 2.4 % (five seeds). See
docs/measurements.md. The paper's datasets have not been measured.

Values from KaiyangZhou/CoOp.
"""

from ml_collections import ConfigDict

from dpt_jax.configs import common


def get_config(arg: str = common.DEFAULT_DATASET) -> ConfigDict:
    """Return the configuration of DATASET[:PROTOCOL]."""
    dataset, _ = common.parse(arg)
    config = common.get_config()
    config.method = "cocoop"
    config.clip.weights = "openai/clip-vit-base-patch16"
    config.text_prompt.init = "a photo of a"
    config.text_prompt.length = 4
    config.text_prompt.conditioned = True
    config.loss.guidance_epochs = 0
    config.train.batch_size = 1
    config.train.epochs = 10
    config.train.warmup_epochs = 1
    return common.on_dataset(config, dataset)
