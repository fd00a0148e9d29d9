"""DPT: text prompt, visual prompt and class-aware visual prompt.

python main.py --config=configs/dpt.py

The default, 16 shots of the bundled digits, gets 49 to 54 % (means of five seeds on two processors;
zero-shot 12.4 %); emoji at 8 shots 36.7 ± 1.0 % (three seeds; zero-shot 31.4 %). See
docs/measurements.md. The paper's datasets have not been measured:

python main.py --config=configs/dpt.py:eurosat --config.dataset.root=DATA

Values from the paper and fanrena/DPT.
"""

from ml_collections import ConfigDict

from dpt_jax.configs import common


def get_config(arg: str = common.DEFAULT_DATASET) -> ConfigDict:
    """Return the configuration of DATASET[:PROTOCOL]."""
    dataset, _ = common.parse(arg)
    config = common.get_config()
    config.method = "dpt"
    return common.on_dataset(config, dataset)
