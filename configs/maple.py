"""MaPLe: a context in the first layers, and visual tokens that are made of it.

python main.py --config=configs/maple.py[:DATASET[:PROTOCOL]]
"""

from ml_collections import ConfigDict

from dpt_jax import settings


def get_config(dataset: str = settings.DEFAULT_DATASET) -> ConfigDict:
    return settings.of_method("maple", dataset)
