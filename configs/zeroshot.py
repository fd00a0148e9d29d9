"""Plain CLIP: nothing is learned.

python main.py --config=configs/zeroshot.py[:DATASET]
"""

from ml_collections import ConfigDict

from dpt_jax import settings


def get_config(dataset: str = settings.DEFAULT_DATASET) -> ConfigDict:
    return settings.of_method("zeroshot", dataset)
