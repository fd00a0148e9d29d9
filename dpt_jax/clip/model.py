"""CLIP: the image tower, the text tower that encodes packed texts, and the temperature.

Shapes: B images, C texts, R rows of packed texts, T tokens, M extra key/value tokens, D width, E
joint embedding.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from dpt_jax.clip import packing
from dpt_jax.clip.blocks import Array, Block, LayerNorm, Params, Transformer, deterministic_gather
from dpt_jax.clip.config import CLIPConfig
from dpt_jax.clip.packing import PackedTexts, local_rows

# The tokens of the shared prefix (1, P, D) and of the rows (R, T, D).
Tokens = tuple[Array, Array]


class VisionOutput(NamedTuple):
    """The outputs of the tower, float32.  Under jit, an unused one costs nothing."""

    features: Array  # (B, E), not normalised
    attention: Array  # (B, heads, T + M), weights of the class token in the last block


class VisionTower(nn.Module):
    """Image tower (ViT): patches, class token first, pre-LN blocks, projection.

    `embed`, `blocks` up to the last layer, then `last_block` make a forward pass. Attributes: see
    `CLIP`.
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
        """Encode normalised images (B, H, W, 3) without prompts."""
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

        extra_kv: (stop - start, B or 1, M, D), the extra key/value tokens of each of these blocks.
        """
        return self.transformer.scan(lambda block, x, own: block(x, own), x, start, stop, extra_kv)

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


class TextTower(nn.Module):
    """Text tower: token and position embeddings, causal blocks, projection at the end of text.

    Attributes: see `CLIP`.
    """

    config: CLIPConfig
    dtype: DTypeLike = jnp.float32
    remat: str = "matmuls"

    def setup(self) -> None:
        config, width = self.config, self.config.text.width
        normal = nn.initializers.normal(0.02)
        self.token_embedding = self.param("token_embedding", normal, (config.vocab_size, width))
        self.position_embedding = self.param(
            "position_embedding", normal, (config.context_length, width)
        )
        self.transformer = Transformer(config.text, self.dtype, self.remat)
        self.ln_final = LayerNorm(config.text.layer_norm_eps)
        self.projection = self.param("projection", normal, (width, config.embed_dim))

    def __call__(
        self, texts: PackedTexts, context: Array | None = None, axis: str | None = None
    ) -> Array:
        """Return text features (C, E), float32, not normalised.

        Args:
          texts: the packed texts.
          context: learned tokens, (depth, n, D), or (depth, C, n, D) if each text has its own.
            context[0] enters with the token embeddings; context[l] replaces what the context
            positions hold before layer l.
          axis: a mapped axis of devices. Each device encodes some of the rows.
        """
        if axis is None:
            features = self._rows(texts, context)
        else:
            own = self._rows(local_rows(texts, axis), context)
            features = jax.lax.all_gather(own, axis, tiled=True)
        return features.reshape(-1, features.shape[-1])[jnp.asarray(texts.eot_index)]

    def _rows(self, texts: PackedTexts, context: Array | None) -> Array:
        """Return features (R, Q, E) at the end-of-text tokens of every row."""
        blocks, last = self.transformer, self.config.text.layers - 1
        prefix_mask = causal_mask(jnp.zeros_like(texts.prefix_tokens)[None])
        mask = causal_mask(jnp.asarray(texts.segment_ids))

        def insert(tokens: Tokens, rows: Array) -> Tokens:
            """Replace the tokens at the context positions by rows (n, D) or (C, n, D)."""
            # With a context per text, rows are many and none is taken twice.
            gather = deterministic_gather if rows.ndim == 2 else lambda table, i: table[i]
            table = rows.reshape(-1, rows.shape[-1])

            def place(x: Array, i: Array) -> Array:
                own = gather(table, jnp.maximum(i, 0)).astype(x.dtype)
                return jnp.where(i[..., None] >= 0, own, x)

            prefix, own = jnp.asarray(texts.prefix_context)[None], jnp.asarray(texts.context)
            return place(tokens[0], prefix), place(tokens[1], own)

        def step(block: Block, tokens: Tokens, rows: Array | None) -> Tokens:
            prefix, own = tokens if rows is None else insert(tokens, rows)
            after = block(prefix, mask=prefix_mask) if prefix.size else prefix
            return after, block(own, prefix, mask=mask)

        prefix = self._embed(self.token_embedding, texts.prefix_tokens)[None]
        tokens = prefix, self._embed(self.token_embedding, texts.tokens)
        if context is not None:
            tokens = insert(tokens, context[0])
        prefix_positions = jnp.arange(len(texts.prefix_tokens))[None]
        tokens = (
            tokens[0] + self._embed(self.position_embedding, prefix_positions),
            tokens[1] + self._embed(self.position_embedding, texts.position_ids),
        )

        start, depth = 0, 0 if context is None else len(context)
        if context is not None and min(depth, last) > 1:
            start = min(depth, last)
            tokens = blocks.scan(step, tokens, 0, 1)
            tokens = blocks.scan(step, tokens, 1, start, context[1:start])
        tokens = blocks.scan(step, tokens, start, last)
        if context is not None and depth > last > 0:
            tokens = insert(tokens, context[last])
        prefix, own = tokens
        # Only the end-of-text tokens leave the last block, so only their queries are computed.
        ends = blocks.block(last)(own, prefix, mask=mask, query=jnp.asarray(texts.eot_positions))
        return (self.ln_final(ends) @ self.projection.astype(self.dtype)).astype(jnp.float32)

    def _embed(self, table: Array, ids: packing.Array) -> Array:
        return jnp.take(table, jnp.asarray(ids), axis=0).astype(self.dtype)


def causal_mask(segment_ids: Array) -> Array:
    """Return the mask (R, T, T) by which a position attends to its own text, up to itself."""
    length = segment_ids.shape[1]
    return (segment_ids[:, :, None] == segment_ids[:, None, :]) & jnp.tri(length, dtype=bool)


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
    texts = packing.pack([[(0, -1), (0, -1)]])
    images = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
    return jax.eval_shape(
        lambda key, x: CLIP(config).init(key, x, texts)["params"], jax.random.key(0), images
    )
