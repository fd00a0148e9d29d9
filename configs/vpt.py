"""VPT-deep: only the visual prompt.

python main.py --config=configs/vpt.py

The default, 16 shots of the bundled digits, gets 36.9 ± 4.2 % (five seeds); emoji at 8 shots
37.4 ± 0.6 % (three seeds). See docs/measurements.md. The paper's datasets have not been measured.

Values from fanrena/DPT, trainers/VPT.py.
"""

from ml_collections import ConfigDict

from dpt_jax.configs import common


def get_config(arg: str = common.DEFAULT_DATASET) -> ConfigDict:
    """Return the configuration of DATASET[:PROTOCOL]."""
    dataset, _ = common.parse(arg)
    config = common.get_config()
    config.method = "vpt"
    config = common.on_dataset(config, dataset)
    if dataset == "imagenet":
        config.train.warmup_epochs = 10  # only DPT and VLP have one epoch there
    return config
