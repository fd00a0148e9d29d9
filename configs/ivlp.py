"""IVLP: tokens of their own in the first layers of both towers, as MaPLe's repository trains it.

python main.py --config=configs/ivlp.py[:DATASET]

PromptSRC's repository has it with text_prompt.length=4, visual_prompt.length=4, both depths 9, both
learning rates 0.0025, and train.epochs=20.
"""

from ml_collections import ConfigDict

from dpt_jax import settings


def get_config(dataset: str = settings.DEFAULT_DATASET) -> ConfigDict:
    return settings.of_method("ivlp", dataset)
