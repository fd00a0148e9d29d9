"""The image tower: a ViT in pieces, so that prompts can enter at every layer.

Shapes: B images, T tokens, M extra key/value tokens, D width, E joint embedding.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from dpt_jax.clip.blocks import Array, LayerNorm, Transformer
from dpt_jax.clip.config import CLIPConfig


class VisionOutput(NamedTuple):
    """The outputs of the tower, float32.  Under jit, an unused one costs nothing."""

    features: Array  # (B, E), not normalised
    attention: Array  # (B, heads, T + M), weights of the class token in the last block


class VisionTower(nn.Module):
    """Image tower (ViT): patches, class token first, pre-LN blocks, projection.

    `embed`, `blocks` up to the last layer, then `last_block` is a forward pass.

    Attributes:
      config: sizes of the CLIP.
      dtype: compute dtype.
      remat: what the backward pass saves, a key of blocks.REMAT_POLICIES.
    """

    config: CLIPConfig
    dtype: DTypeLike = jnp.float32
    remat: str = "matmuls"

    def setup(self) -> None:
        config, width = self.config, self.config.vision.width
        normal = nn.initializers.normal(width**-0.5)
        patch_values = 3 * config.patch_size**2
        self.patch_embedding = self.param("patch_embedding", normal, (patch_values, width))
        self.class_embedding = self.param("class_embedding", normal, (width,))
        self.position_embedding = self.param(
            "position_embedding", normal, (config.grid**2 + 1, width)
        )
        self.ln_pre = LayerNorm(config.vision.layer_norm_eps)
        self.transformer = Transformer(config.vision, self.dtype, self.remat)
        self.ln_post = LayerNorm(config.vision.layer_norm_eps)
        self.projection = self.param("projection", normal, (width, config.embed_dim))

    def __call__(self, images: Array) -> VisionOutput:
        """Encode normalised images (B, H, W, 3) without prompts, see `last_block`."""
        last = self.config.vision.layers - 1
        return self.last_block(self.blocks(self.embed(images), 0, last))

    def embed(self, images: Array) -> Array:
        """Return the tokens (B, 1 + patches, D) of normalised images (B, H, W, 3)."""
        batch, grid, patch = images.shape[0], self.config.grid, self.config.patch_size
        images = images[:, : grid * patch, : grid * patch].astype(self.dtype)
        patches = images.reshape(batch, grid, patch, grid, patch, 3).transpose(0, 1, 3, 2, 4, 5)
        x = patches.reshape(batch, grid**2, -1) @ self.patch_embedding.astype(self.dtype)
        first = jnp.broadcast_to(self.class_embedding.astype(self.dtype), (batch, 1, x.shape[-1]))
        x = jnp.concatenate([first, x], axis=1) + self.position_embedding.astype(self.dtype)
        return self.ln_pre(x)

    def blocks(self, x: Array, start: int, stop: int, extra_kv: Array | None = None) -> Array:
        """Run tokens x (B, T, D) through blocks start … stop - 1 (0-based).

        extra_kv: (stop - start, M, D), the extra key/value tokens of each of these blocks.
        """
        return self.transformer.scan(
            lambda block, x, own: block(x, None if own is None else own[None]),
            x,
            start,
            stop,
            extra_kv,
        )

    def block(self, layer: int, x: Array, extra_kv: Array) -> Array:
        """Run tokens x (B, T, D) through one block (0-based).  extra_kv: (B or 1, M, D)."""
        return self.transformer.checkpointed_block(layer)(x, extra_kv)

    def last_block(self, x: Array, extra_kv: Array | None = None) -> VisionOutput:
        """Run tokens x (B, T, D) through the last block and the projection.

        extra_kv: (B or 1, M, D).
        """
        block = self.transformer.block(self.config.vision.layers - 1)
        # Only the class token leaves the last block, so only its query is computed.
        first = jnp.zeros((1, 1), jnp.int32)
        attention = block.attention(x, extra_kv, query=first)[:, :, 0]
        x = block(x, extra_kv, query=first)
        features = self.ln_post(x[:, 0]) @ self.projection.astype(self.dtype)
        return VisionOutput(features.astype(jnp.float32), attention)
