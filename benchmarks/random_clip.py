"""CLIPs of the published sizes with random weights: a benchmark needs their shapes and no download."""

import pathlib
import tempfile
from typing import Any

import jax
import numpy as np
from etils import epath

from dpt_jax.clip.config import CLIPConfig, TransformerConfig
from dpt_jax.clip.model import param_shapes
from dpt_jax.clip.pretrained import Pretrained
from dpt_jax.clip.tokenizer import load_tokenizer


def _vit(
    embed_dim: int, patch: int, vision_width: int, vision_layers: int, text_width: int
) -> CLIPConfig:
    vision = TransformerConfig(vision_width, vision_layers, vision_width // 64, 4 * vision_width)
    text = TransformerConfig(text_width, 12, text_width // 64, 4 * text_width)
    return CLIPConfig(embed_dim, 224, patch, vision, text)


SIZES = {
    "vit-b-32": _vit(512, 32, 768, 12, 512),
    "vit-b-16": _vit(512, 16, 768, 12, 512),
    "vit-l-14": _vit(768, 14, 1024, 24, 768),
}


def random_clip(name: str, dtype: Any = np.float32) -> Pretrained:
    """A CLIP of SIZES with weights as at the start of its training, nearly: N(0, 0.02²), layer norms neutral."""
    generator = np.random.default_rng(0)

    def draw(path: Any, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        kind = path[-1].key
        if kind in ("scale", "bias"):
            return np.full(shape.shape, float(kind == "scale"), np.float32)
        values = generator.standard_normal(shape.shape, np.float32)
        values *= np.float32(0.02)
        return values.astype(dtype)

    params = jax.tree_util.tree_map_with_path(draw, param_shapes(SIZES[name]))
    params["logit_scale"] = np.float32(np.log(100))
    with tempfile.TemporaryDirectory() as empty:
        return Pretrained(SIZES[name], params, load_tokenizer(epath.Path(pathlib.Path(empty))))
