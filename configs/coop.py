"""CoOp: the text prompt alone.

python main.py --config=configs/coop.py[:DATASET]
"""

from ml_collections import ConfigDict

from dpt_jax import settings


def get_config(dataset: str = settings.DEFAULT_DATASET) -> ConfigDict:
    return settings.of_method("coop", dataset)
