"""The class-aware visual prompt (CAVPT): tokens computed for each image from its likeliest classes.

Symbols of the paper: B images, K likeliest classes, T tokens, C classes, D_v width of the image
tower, E joint embedding, G global tokens.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from dpt_jax.clip.blocks import LayerNorm
from dpt_jax.prompts.linear import linear

Array = jax.Array
GLOBAL_TOKENS = 10  # G_l: 10 whatever K is, as published
ATTENTION_WIDTH = 32


class ClassPrompts(NamedTuple):
    """The class prompts of one layer, and outputs for losses and pictures (float32)."""

    tokens: Array  # (B, K, D_v)
    auxiliary_logits: Array  # (B, K, C)
    attention: Array  # (B, K, T + G), over the image tokens, then the global ones


class ClassAwarePrompt(nn.Module):
    """Class prompts of one layer, by cross-attention from text features to image tokens.

    Attributes:
      classes: C of the auxiliary classifier.
      dtype: compute dtype.
    """

    classes: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, text_features: Array) -> ClassPrompts:
        """Return the class prompts.

        Args:
          x: (B, T, D_v), the tokens entering the block. They get no gradient.
          text_features: (B, K, E), those of the K likeliest classes, not normalised. Their
            gradient trains the text prompt.
        """
        width, embed_dim = x.shape[-1], text_features.shape[-1]
        tokens = self.param("global_tokens", nn.initializers.normal(0.02), (GLOBAL_TOKENS, width))
        shared = jnp.broadcast_to(tokens, (x.shape[0], *tokens.shape)).astype(self.dtype)
        m = jnp.concatenate([jax.lax.stop_gradient(x), shared], axis=1)

        c = linear(width, embed_dim, "class_projection", self.dtype, bias=True)(
            text_features.astype(self.dtype)
        ).astype(self.dtype)
        query = linear(ATTENTION_WIDTH, width, "query", self.dtype)(c)
        key = linear(ATTENTION_WIDTH, width, "key", self.dtype)(m)
        scores = jnp.einsum("bka,bta->bkt", query, key, preferred_element_type=jnp.float32)
        a = jax.nn.softmax(scores * ATTENTION_WIDTH**-0.5)
        o = linear(width, width, "value", self.dtype)(a.astype(self.dtype) @ m)

        auxiliary = linear(self.classes, width, "classifier", self.dtype)(
            LayerNorm(name="ln_classifier")(o)
        )
        return ClassPrompts(LayerNorm(name="ln_prompt")(o + c), auxiliary.astype(jnp.float32), a)
