"""CLIPs of the published sizes with random weights, which need no download."""

import tempfile
from typing import Any

import jax
import numpy as np
from etils import epath

from dpt_jax.clip.config import CLIPConfig, TransformerConfig
from dpt_jax.clip.model import param_shapes
from dpt_jax.clip.pretrained import Pretrained
from dpt_jax.clip.tokenizer import Tokenizer, load_tokenizer


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
    "small": _vit(64, 32, 64, 4, 64),  # not a published size: for a benchmark in seconds
}


def random_clip(name: str, dtype: Any = np.float32) -> Pretrained:
    """Return a CLIP of SIZES with weights N(0, 0.02²) and neutral layer norms."""
    generator = np.random.default_rng(0)

    def draw(path: Any, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        kind = path[-1].key
        if kind in ("scale", "bias"):
            return np.full(shape.shape, float(kind == "scale"), shape.dtype)
        values = generator.standard_normal(shape.shape, np.float32)
        values *= np.float32(0.02)
        return values.astype(shape.dtype)

    params = jax.tree_util.tree_map_with_path(draw, clip_shapes(name, dtype))
    params["logit_scale"] = np.float32(np.log(100))
    return Pretrained(SIZES[name], params, openai_tokenizer())


def clip_shapes(name: str, dtype: Any) -> Any:
    """Return the shapes of a CLIP of SIZES, in the types that `load_clip` gives its parameters."""

    def cast(path: Any, shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        keys = [part.key for part in path]
        exact = keys[-1] == "logit_scale" or any(key.startswith("ln_") for key in keys)
        return jax.ShapeDtypeStruct(shape.shape, np.float32 if exact else dtype)

    return jax.tree_util.tree_map_with_path(cast, param_shapes(SIZES[name]))


def openai_tokenizer() -> Tokenizer:
    """Return the tokenizer of OpenAI's CLIPs, which a directory without a vocabulary gets."""
    with tempfile.TemporaryDirectory() as empty:
        return load_tokenizer(epath.Path(empty))
