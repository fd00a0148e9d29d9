"""The frozen CLIP backbone. Knows nothing of prompts or training."""

from dpt_jax.clip.model import CLIP, CLIPConfig, TextLayout, TransformerConfig

__all__ = ["CLIP", "CLIPConfig", "TextLayout", "TransformerConfig"]
