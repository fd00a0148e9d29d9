"""The text tower, which encodes many short texts in few rows.

Shapes: C texts, R rows of packed texts, T tokens, D width, E joint embedding.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dpt_jax.clip.blocks import Array, LayerNorm, Transformer
from dpt_jax.clip.config import CLIPConfig
from dpt_jax.clip.rows import take_rows


class TextLayout(NamedTuple):
    """C texts, split into the tokens they all begin with and their own tokens.

    Attention is causal, so the shared beginning is the same for every text and
    is encoded once (P tokens); the own tokens look at it as a memory. Several
    texts share a row of T tokens, where each sees itself only, so that the cost
    goes with the tokens there are and not with the longest text.

    A place holds either a token id or, where `*context` is not negative, that
    row of the learned context (of all classes' rows, one class after the other,
    where each has its own).
    """

    prefix_tokens: np.ndarray | Array  # (P,) int32
    prefix_context: np.ndarray | Array  # (P,) int32, -1: no context here
    tokens: np.ndarray | Array  # (R, T) int32
    context: np.ndarray | Array  # (R, T) int32, -1: no context here
    text: np.ndarray | Array  # (R, T) int32, the text a place belongs to, -1: padding
    position: np.ndarray | Array  # (R, T) int32, where it stands in its text, the prefix counted
    ends: np.ndarray | Array  # (R, Q) int32, places of the row's end-of-text tokens, padded with 0
    order: np.ndarray | Array  # (C,) int32, where each text's end is in the flattened `ends`


class TextTower(nn.Module):
    """Text tower: token and position embeddings, causal blocks, projection at the end of text."""

    config: CLIPConfig
    dtype: Any = jnp.float32
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

    def __call__(self, layout: TextLayout, context: Array | None = None) -> Array:
        """Text features (C, E), float32, not normalised.  context: see `rows`."""
        ends = self.rows(layout, context)
        return ends.reshape(-1, ends.shape[-1])[jnp.asarray(layout.order)]

    def rows(self, layout: TextLayout, context: Array | None = None) -> Array:
        """Features (R, Q, E) at the `ends` of every row, float32, not normalised.

        context: learned tokens, (depth, n, D), or (depth, C, n, D) where each
        text has its own. context[0] enters with the token embeddings;
        context[l] replaces what the context places hold before layer l.
        """
        blocks, last = self.transformer, self.config.text.layers - 1
        masks = causal(jnp.zeros_like(layout.prefix_tokens)[None]), causal(jnp.asarray(layout.text))
        places = jnp.asarray(layout.prefix_context)[None], jnp.asarray(layout.context)

        def place(carry: tuple[Array, ...], rows: Array) -> tuple[Array, ...]:
            """Put the rows (n, D) or (C, n, D) of the context where the layout has them."""
            shared = rows.ndim == 2
            rows = rows.reshape(-1, rows.shape[-1])

            def take(index: Array) -> Array:
                numbers = jnp.maximum(index, 0)
                # Of a context for each text no row is taken twice, and there are many.
                return take_rows(rows, numbers) if shared else rows[numbers]

            return tuple(
                jnp.where(index[..., None] >= 0, take(index).astype(x.dtype), x)
                for x, index in zip(carry, places, strict=True)
            )

        def step(block: Callable[..., Array], carry: Any, rows: Array | None) -> tuple[Any, None]:
            prefix, own = carry if rows is None else place(carry, rows)
            return (block(prefix, mask=masks[0]), block(own, prefix, mask=masks[1])), None

        tokens = layout.prefix_tokens[None], layout.tokens
        positions = jnp.arange(len(layout.prefix_tokens))[None], layout.position
        carry = tuple(jnp.take(self.token_embedding, t, axis=0).astype(self.dtype) for t in tokens)
        if context is not None:
            carry = place(carry, context[0])
        carry = tuple(
            x + jnp.take(self.position_embedding, position, axis=0).astype(self.dtype)
            for x, position in zip(carry, positions, strict=True)
        )

        depth = 1 if context is None else min(context.shape[0], last)
        start = 0
        if context is not None and depth > 1:
            carry, _ = blocks.scan(step, carry, 0, 1)
            carry, _ = blocks.scan(step, carry, 1, depth, context[1:depth])
            start = depth
        carry, _ = blocks.scan(step, carry, start, last)
        if context is not None and context.shape[0] > last > 0:
            carry = place(carry, context[last])
        prefix, own = carry
        ends = blocks.block(last)(own, prefix, mask=masks[1], query=jnp.asarray(layout.ends))
        return (self.ln_final(ends) @ self.projection.astype(self.dtype)).astype(jnp.float32)


def share(layout: TextLayout, axis: str) -> TextLayout:
    """Return the rows of a layout that are this device's, of the devices along a mapped axis.

    `order` stays that of all rows.
    """
    devices, device = jax.lax.axis_size(axis), jax.lax.axis_index(axis)
    rows = -(-layout.tokens.shape[0] // devices)

    def own(x: Any, padding: int) -> Array:
        padded = jnp.pad(x, ((0, rows * devices - x.shape[0]), (0, 0)), constant_values=padding)
        return jax.lax.dynamic_slice_in_dim(padded, device * rows, rows)

    return layout._replace(
        tokens=own(layout.tokens, 0),
        context=own(layout.context, -1),
        text=own(layout.text, -1),
        position=own(layout.position, 0),
        ends=own(layout.ends, 0),
    )


def causal(text: Array) -> Array:
    """Return the mask (R, T, T) of rows whose places belong to the texts (R, T).

    A place sees its own text up to itself.
    """
    length = text.shape[1]
    return (text[:, :, None] == text[:, None, :]) & jnp.tri(length, dtype=bool)
