"""DPT with the losses of PromptSRC, a combination that no paper has.

python main.py --config=configs/dptsrc.py[:DATASET]
"""

from ml_collections import ConfigDict

from dpt_jax import settings


def get_config(dataset: str = settings.DEFAULT_DATASET) -> ConfigDict:
    return settings.of_method("dptsrc", dataset)
