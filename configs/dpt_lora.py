"""DPT together with CLIP-LoRA's changes to both towers, trained by AdamW.

python main.py --config=configs/dpt_lora.py

Unpublished; these settings are untuned.
"""

from ml_collections import ConfigDict

from dpt_jax.configs import common, dpt


def get_config(arg: str = common.DEFAULT_DATASET) -> ConfigDict:
    """Return the configuration of DATASET[:PROTOCOL]."""
    config = dpt.get_config(arg)
    config.method = "dpt_lora"
    config.train.optimizer, config.train.weight_decay = "adamw", 0.01
    config.train.visual_lr = config.train.text_lr = 0.002
    return config
