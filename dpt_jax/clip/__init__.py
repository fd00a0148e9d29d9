"""The frozen CLIP backbone: modules, weights, tokenizer, image preprocessing.

It does not depend on prompts or training, and can be used without them. `pretrained.load_clip`
finds and reads weights: `files` has their formats and tensor names, `config` the sizes and image
preprocessing, and `tokenizer` the vocabulary. `model`, `blocks` and `packing` compute features.
"""

import os

from dpt_jax.clip.config import CLIPConfig, TransformerConfig
from dpt_jax.clip.model import CLIP
from dpt_jax.clip.packing import PackedTexts

__all__ = ["CLIP", "CLIPConfig", "PackedTexts", "TransformerConfig"]

# Without PyTorch, transformers warns on import that models are missing. Only its tokenizer is used
# here.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
