"""A context that depends on the image (CoCoOp): a small network adds to it what the image says.

Symbols: B images, n context tokens, D_t width of the text tower, E joint embedding, z image
features in plain CLIP, of unit length.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dpt_jax.prompts.linear import linear

NARROWING = 16  # the hidden layer has E // 16 units
# Of texts for each image: enough to keep a device busy, and a small part of its memory.
TOKENS_AT_A_TIME = 2**15


class MetaNet(nn.Module):
    """π = W₂ relu(W₁ z + b₁) + b₂, in float32: from z (B, E) to (B, D_t)."""

    embed: int
    text_width: int

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        hidden = self.embed // NARROWING
        narrow = linear(hidden, self.embed, "linear1", jnp.float32, bias=True)
        wide = linear(self.text_width, hidden, "linear2", jnp.float32, bias=True)
        return wide(jax.nn.relu(narrow(features)))


def conditioned(context: jax.Array, added: jax.Array) -> jax.Array:
    """Return the contexts of B images, (B, depth, …, n, D_t).

    context: (depth, …, n, D_t). added: π (B, D_t), the same on each token of the first layer.
    """
    first = context[:1] + added.reshape(-1, *[1] * (context.ndim - 1), added.shape[-1])
    others = jnp.broadcast_to(context[1:], (added.shape[0], *context[1:].shape))
    return jnp.concatenate([first, others], axis=1)


def images_at_a_time(images: Any, tokens: int) -> Any:
    """Return how many images to encode the texts of at once, a divisor of their number.

    tokens: those of the texts of one image. All, if the number is not known (in an exported
    program).
    """
    if not isinstance(images, int):
        return images
    most = max(1, TOKENS_AT_A_TIME // tokens)
    return next(part for part in range(min(most, images), 0, -1) if images % part == 0)
