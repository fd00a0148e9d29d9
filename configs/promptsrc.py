"""PromptSRC: tokens in both towers, held to plain CLIP, and averaged over the epochs.

python main.py --config=configs/promptsrc.py[:DATASET[:PROTOCOL]]
"""

from ml_collections import ConfigDict

from dpt_jax import settings


def get_config(dataset: str = settings.DEFAULT_DATASET) -> ConfigDict:
    return settings.of_method("promptsrc", dataset)
