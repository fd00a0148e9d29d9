"""VLP: text prompt and visual prompt, without the class-aware one."""

from ml_collections import ConfigDict

from configs import dpt


def get_config(dataset: str = "emoji") -> ConfigDict:
    config = dpt.get_config(dataset)
    config.cavpt.top_k = 0
    return config
