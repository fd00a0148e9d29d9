"""The text tower, which encodes packed texts.

Shapes: C texts, R rows of packed texts, T tokens of a row, D width, E joint embedding.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from dpt_jax.clip import packing
from dpt_jax.clip.blocks import Array, Block, LayerNorm, Transformer
from dpt_jax.clip.config import CLIPConfig
from dpt_jax.clip.gather import deterministic_gather
from dpt_jax.clip.packing import PackedTexts, local_rows

# The tokens of the shared prefix (1, P, D) and of the rows (R, T, D).
Tokens = tuple[Array, Array]


class TextTower(nn.Module):
    """Text tower: token and position embeddings, causal blocks, projection at the end of text.

    Attributes:
      config: sizes of the CLIP.
      dtype: compute dtype.
      remat: what the backward pass saves, a key of blocks.REMAT_POLICIES.
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
            # With a context per text, no row is taken twice, and there are many rows.
            gather = deterministic_gather if rows.ndim == 2 else lambda table, i: table[i]
            table = rows.reshape(-1, rows.shape[-1])
            prefix, own = (
                jnp.where(i[..., None] >= 0, gather(table, jnp.maximum(i, 0)).astype(x.dtype), x)
                for x, i in zip(
                    tokens,
                    (jnp.asarray(texts.prefix_context)[None], jnp.asarray(texts.context)),
                    strict=True,
                )
            )
            return prefix, own

        def step(block: Block, tokens: Tokens, rows: Array | None) -> Tokens:
            prefix, own = tokens if rows is None else insert(tokens, rows)
            after = block(prefix, mask=prefix_mask) if prefix.size else prefix
            return after, block(own, prefix, mask=mask)

        tokens = self._embed(texts.prefix_tokens)[None], self._embed(texts.tokens)
        if context is not None:
            tokens = insert(tokens, context[0])
        prefix_positions = jnp.arange(len(texts.prefix_tokens))[None]
        tokens = (
            tokens[0] + self._positions(prefix_positions),
            tokens[1] + self._positions(texts.position_ids),
        )

        depth = 1 if context is None else min(context.shape[0], last)
        start = 0
        if context is not None and depth > 1:
            tokens = blocks.scan(step, tokens, 0, 1)
            tokens = blocks.scan(step, tokens, 1, depth, context[1:depth])
            start = depth
        tokens = blocks.scan(step, tokens, start, last)
        if context is not None and context.shape[0] > last > 0:
            tokens = insert(tokens, context[last])
        prefix, own = tokens
        # Only the end-of-text tokens leave the last block, so only their queries are computed.
        ends = blocks.block(last)(own, prefix, mask=mask, query=jnp.asarray(texts.eot_positions))
        return (self.ln_final(ends) @ self.projection.astype(self.dtype)).astype(jnp.float32)

    def _embed(self, tokens: packing.Array) -> Array:
        return jnp.take(self.token_embedding, jnp.asarray(tokens), axis=0).astype(self.dtype)

    def _positions(self, positions: packing.Array) -> Array:
        return jnp.take(self.position_embedding, jnp.asarray(positions), axis=0).astype(self.dtype)


def causal_mask(segment_ids: Array) -> Array:
    """Return the mask (R, T, T) by which a position attends to its own text, up to itself."""
    length = segment_ids.shape[1]
    return (segment_ids[:, :, None] == segment_ids[:, None, :]) & jnp.tri(length, dtype=bool)
