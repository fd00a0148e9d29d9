"""CoOp: only the text prompt, with the epochs of DPT's paper.

python main.py --config=configs/coop.py

The default, 16 shots of the bundled digits, gets 26.7 ± 3.7 % (five seeds); emoji at 8 shots
32.0 ± 0.0 % (three seeds). See docs/measurements.md. The paper's datasets have not been measured.

KaiyangZhou/CoOp trains for 50 epochs at 1 shot and on ImageNet, 100 at 2 and 4 shots, and 200 at 8
and 16 shots (--config.train.epochs=200); its other values are these.
"""

from ml_collections import ConfigDict

from dpt_jax.configs import common


def get_config(arg: str = common.DEFAULT_DATASET) -> ConfigDict:
    """Return the configuration of DATASET[:PROTOCOL]."""
    dataset, _ = common.parse(arg)
    config = common.get_config()
    config.method = "coop"
    return common.on_dataset(config, dataset)
