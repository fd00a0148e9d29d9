"""TaskRes: a learned residual on the text features.

python main.py --config=configs/taskres.py

The default, 16 shots of the bundled digits, gets 34.8 ± 0.8 % (five seeds) and takes seconds.
See docs/measurements.md. The paper's datasets have not been measured.

Values from geekyutao/TaskRes: 100 epochs, and 200 from 8 shots on. It reports the last epoch.
"""

from ml_collections import ConfigDict

from dpt_jax.configs import common


def get_config(arg: str = common.DEFAULT_DATASET) -> ConfigDict:
    """Return the configuration of DATASET[:PROTOCOL]."""
    dataset, _ = common.parse(arg)
    config = common.get_config()
    config.method = "taskres"
    config.clip.weights = "openai/clip-vit-base-patch16"
    config.classifier.name = "taskres"
    config.classifier.train_views = -1
    config.classifier.lr = 0.0002 if dataset == "imagenet" else 0.002
    config.classifier.weight_decay = 0.0005
    config.classifier.batch_size = 256
    config.classifier.residual_scale = 1.0 if dataset == "oxford_flowers" else 0.5
    if dataset == "imagenet":
        config.dataset.template = f"{common.TIP_TEMPLATES}|a photo of a {{}}."
    return common.on_dataset(config, dataset)
