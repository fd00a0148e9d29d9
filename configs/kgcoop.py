"""KgCoOp: a context whose texts are held to those of plain CLIP.

python main.py --config=configs/kgcoop.py[:DATASET[:PROTOCOL]]
"""

from ml_collections import ConfigDict

from dpt_jax import settings


def get_config(dataset: str = settings.DEFAULT_DATASET) -> ConfigDict:
    return settings.of_method("kgcoop", dataset)
