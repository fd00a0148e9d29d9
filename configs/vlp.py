"""VLP: text prompt and visual prompt, without the class-aware one.

python main.py --config=configs/vlp.py

The default, 16 shots of the bundled digits, gets 51.9 ± 4.8 % (five seeds); emoji at 8 shots
36.9 ± 0.3 % (three seeds). See docs/measurements.md. The paper's datasets have not been measured.

Values from fanrena/DPT.
"""

from ml_collections import ConfigDict

from dpt_jax.configs import common


def get_config(arg: str = common.DEFAULT_DATASET) -> ConfigDict:
    """Return the configuration of DATASET[:PROTOCOL]."""
    dataset, _ = common.parse(arg)
    config = common.get_config()
    config.method = "vlp"
    return common.on_dataset(config, dataset)
