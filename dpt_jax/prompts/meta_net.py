"""CoCoOp's meta-net: a small network that adds a per-image offset to the context.

Symbols: B images, n context tokens, D_t width of the text tower, E joint embedding, z normalised
image features of frozen CLIP.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dpt_jax.prompts.linear import linear

REDUCTION = 16  # the hidden layer has E // 16 units
# Text tokens encoded at a time: enough to keep a device busy, a small part of its memory.
TOKENS_AT_A_TIME = 2**15


class MetaNet(nn.Module):
    """π = W₂ relu(W₁ z + b₁) + b₂ in float32: from z (B, E) to (B, D_t)."""

    embed_dim: int
    text_width: int

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        hidden = self.embed_dim // REDUCTION
        down = linear(hidden, self.embed_dim, "linear1", jnp.float32, bias=True)
        up = linear(self.text_width, hidden, "linear2", jnp.float32, bias=True)
        return up(jax.nn.relu(down(features)))


def add_to_context(context: jax.Array, offset: jax.Array) -> jax.Array:
    """Return the contexts of B images, (B, depth, …, n, D_t).

    Args:
      context: (depth, …, n, D_t).
      offset: π (B, D_t), added to each token of the first layer.
    """
    first = context[:1] + offset.reshape(-1, *[1] * (context.ndim - 1), offset.shape[-1])
    others = jnp.broadcast_to(context[1:], (offset.shape[0], *context[1:].shape))
    return jnp.concatenate([first, others], axis=1)


def images_at_a_time(images: int, tokens: int) -> int:
    """Return how many images' texts to encode at once, a divisor of the number of images.

    tokens: number of tokens of the texts of one image.
    """
    most = max(1, TOKENS_AT_A_TIME // tokens)
    return next(part for part in range(min(most, images), 0, -1) if images % part == 0)
