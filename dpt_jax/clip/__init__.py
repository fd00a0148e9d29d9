"""The frozen CLIP backbone: modules, weights, tokenizer, image preprocessing.

Knows nothing of prompts or training, and can be used alone.
"""

import os

from dpt_jax.clip.config import CLIPConfig, TransformerConfig
from dpt_jax.clip.model import CLIP
from dpt_jax.clip.packing import PackedTexts

__all__ = ["CLIP", "CLIPConfig", "PackedTexts", "TransformerConfig"]

# Without PyTorch, transformers says at its import that models are missing; its tokenizer, which
# is all that is used here, is not.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
