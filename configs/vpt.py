"""VPT-deep: the visual prompt alone."""

from ml_collections import ConfigDict

from configs import dpt


def get_config(dataset: str = "emoji") -> ConfigDict:
    config = dpt.get_config(dataset)
    config.text_prompt.length = 0
    config.cavpt.top_k = 0
    return config
