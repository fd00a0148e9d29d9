"""CLIP: both towers and the temperature."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from dpt_jax.clip.blocks import Array, Params
from dpt_jax.clip.config import CLIPConfig
from dpt_jax.clip.packing import PackedTexts
from dpt_jax.clip.text import TextTower
from dpt_jax.clip.vision import VisionTower


class CLIP(nn.Module):
    """Both towers and the temperature.

    Attributes:
      config: sizes of the CLIP.
      dtype: compute dtype.
      remat: what the backward pass saves, a key of blocks.REMAT_POLICIES.
    """

    config: CLIPConfig
    dtype: DTypeLike = jnp.float32
    remat: str = "matmuls"

    def setup(self) -> None:
        self.vision = VisionTower(self.config, self.dtype, self.remat)
        self.text = TextTower(self.config, self.dtype, self.remat)
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(np.log(1 / 0.07)), ())

    def __call__(self, images: Array, texts: PackedTexts) -> tuple[Array, Array]:
        """Return features of normalised images (B, H, W, 3) and of texts: (B, E), (C, E)."""
        return self.vision(images).features, self.text(texts)


def normalize(features: Array) -> Array:
    """Return rows of unit Euclidean length, in float32."""
    features = features.astype(jnp.float32)
    return features / jnp.linalg.norm(features, axis=-1, keepdims=True)


@functools.lru_cache(maxsize=8)  # tracing takes half a second
def param_shapes(config: CLIPConfig) -> Params:
    """Return the tree of jax.ShapeDtypeStruct that CLIP(config) expects; nothing is computed."""
    texts = PackedTexts(
        *(np.zeros(shape, np.int32) for shape in (*[(1,)] * 2, *[(1, 1)] * 5, (1,)))
    )
    images = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
    return jax.eval_shape(
        lambda key, x: CLIP(config).init(key, x, texts)["params"], jax.random.key(0), images
    )
