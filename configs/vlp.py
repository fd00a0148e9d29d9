"""VLP: text prompt and visual prompt, without the class-aware one.

python main.py --config=configs/vlp.py[:DATASET]
"""

from ml_collections import ConfigDict

from dpt_jax import settings


def get_config(dataset: str = settings.DEFAULT_DATASET) -> ConfigDict:
    return settings.of_method("vlp", dataset)
