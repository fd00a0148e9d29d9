"""The frozen CLIP backbone. Knows nothing of prompts or training."""

import os

from dpt_jax.clip.model import CLIP, CLIPConfig, TextLayout, TransformerConfig

__all__ = ["CLIP", "CLIPConfig", "TextLayout", "TransformerConfig"]

# Without PyTorch, transformers says at its import that models are missing; its tokenizer, which is all that is used
# here, is not.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
