"""CLIP-Adapter: two layers on the image feature.

python main.py --config=configs/clip_adapter.py

The default, 16 shots of the bundled digits, gets 23.6 ± 0.8 % (five seeds) and takes seconds.
See docs/measurements.md. The paper's datasets have not been measured.

Values from gaopengcuhk/CLIP-Adapter and CoOp's configuration, which it refers to: 50 epochs at 1
shot, 100 at 2 and 4, and 200 from 8 shots on. It reports the last epoch.
"""

from ml_collections import ConfigDict

from dpt_jax.configs import common


def get_config(arg: str = common.DEFAULT_DATASET) -> ConfigDict:
    """Return the configuration of DATASET[:PROTOCOL]."""
    dataset, _ = common.parse(arg)
    config = common.get_config()
    config.method = "clip_adapter"
    config.clip.weights = "openai/clip-vit-base-patch16"
    config.classifier.name = "clip_adapter"
    config.classifier.train_views = -1
    config.classifier.lr = 0.002
    config.classifier.weight_decay = 0.0005
    config.classifier.batch_size = 32
    config.classifier.ratio = 0.2
    if dataset == "imagenet":
        config.classifier.epochs = 50
    return common.on_dataset(config, dataset)
