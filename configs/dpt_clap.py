"""DPT, and then CLAP on its tuned features and texts, with CLIP and prompts frozen.

python main.py --config=configs/dpt_clap.py

The default, 16 shots of the bundled digits, gets 52.7 ± 6.9 % (five seeds).
See docs/measurements.md. The paper's datasets have not been measured.

--config.train.epochs=0 --config.init_from=RUN trains only the classifier, on a run of DPT.
"""

from ml_collections import ConfigDict

from dpt_jax.configs import clap, common, dpt


def get_config(arg: str = common.DEFAULT_DATASET) -> ConfigDict:
    """Return the configuration of DATASET[:PROTOCOL]."""
    config = dpt.get_config(arg)
    config.method = "dpt_clap"
    config.classifier.update(clap.get_config(arg).classifier)
    return config
