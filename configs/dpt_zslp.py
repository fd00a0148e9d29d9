"""DPT, and then ZS-LP on its tuned features and texts, with CLIP and prompts frozen.

python main.py --config=configs/dpt_zslp.py

The default, 16 shots of the bundled digits, gets 60.6 ± 4.4 % (five seeds).
See docs/measurements.md. The paper's datasets have not been measured.

--config.train.epochs=0 --config.init_from=RUN trains only the classifier, on a run of DPT.
"""

from ml_collections import ConfigDict

from dpt_jax.configs import common, dpt, zslp


def get_config(arg: str = common.DEFAULT_DATASET) -> ConfigDict:
    """Return the configuration of DATASET[:PROTOCOL]."""
    config = dpt.get_config(arg)
    config.method = "dpt_zslp"
    config.classifier.update(zslp.get_config(arg).classifier)
    return config
