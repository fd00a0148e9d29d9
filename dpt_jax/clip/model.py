"""CLIP: both towers and the temperature."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dpt_jax.clip.blocks import Array
from dpt_jax.clip.config import CLIPConfig
from dpt_jax.clip.text import TextLayout, TextTower
from dpt_jax.clip.vision import VisionTower


class CLIP(nn.Module):
    """Both towers and the temperature."""

    config: CLIPConfig
    dtype: Any = jnp.float32
    remat: str = "matmuls"

    def setup(self) -> None:
        self.vision = VisionTower(self.config, self.dtype, self.remat)
        self.text = TextTower(self.config, self.dtype, self.remat)
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(np.log(1 / 0.07)), ())

    def __call__(self, images: Array, layout: TextLayout) -> tuple[Array, Array]:
        """Plain features: images (B, H, W, 3), normalised -> (B, E); texts -> (C, E)."""
        return self.vision(images).features, self.text(layout)


def normalize(features: Array) -> Array:
    """Rows of unit Euclidean length, in float32."""
    features = features.astype(jnp.float32)
    return features / jnp.linalg.norm(features, axis=-1, keepdims=True)


def param_shapes(config: CLIPConfig) -> Any:
    """The tree of jax.ShapeDtypeStruct that CLIP(config) expects, without computing anything."""
    layout = TextLayout(
        *(np.zeros(shape, np.int32) for shape in (*[(1,)] * 2, *[(1, 1)] * 5, (1,)))
    )
    images = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
    return jax.eval_shape(
        lambda key, x: CLIP(config).init(key, x, layout)["params"], jax.random.key(0), images
    )
