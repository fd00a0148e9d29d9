"""VPT-deep: the visual prompt alone.

python main.py --config=configs/vpt.py[:DATASET]
"""

from ml_collections import ConfigDict

from dpt_jax import settings


def get_config(dataset: str = settings.DEFAULT_DATASET) -> ConfigDict:
    return settings.of_method("vpt", dataset)
