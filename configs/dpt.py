"""DPT: text prompt, visual prompt and class-aware visual prompt.

python main.py --config=configs/dpt.py[:DATASET]
"""

from ml_collections import ConfigDict

from dpt_jax import settings


def get_config(dataset: str = settings.DEFAULT_DATASET) -> ConfigDict:
    return settings.of_method("dpt", dataset)
