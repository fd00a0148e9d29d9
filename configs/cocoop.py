"""CoCoOp: a context to which a small network adds what the image says.

python main.py --config=configs/cocoop.py[:DATASET]
"""

from ml_collections import ConfigDict

from dpt_jax import settings


def get_config(dataset: str = settings.DEFAULT_DATASET) -> ConfigDict:
    return settings.of_method("cocoop", dataset)
