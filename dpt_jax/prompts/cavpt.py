"""The class-aware visual prompt (CAVPT): tokens made for each image from its likeliest classes.

Symbols of the paper: B images, K classes looked at, T tokens, C classes,
D_v width of the vision tower, E joint embedding.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dpt_jax.clip.blocks import LayerNorm
from dpt_jax.prompts.linear import linear

Array = jax.Array
GLOBAL_TOKENS = 10  # G_l: 10 whatever K is, as published
ATTENTION_WIDTH = 32


class Made(NamedTuple):
    """What the losses and pictures read of the class prompts of one layer, float32."""

    auxiliary: Array  # (B, K, C), logits
    # (B, K, T + GLOBAL_TOKENS), what each class prompt is made of: image tokens, then global ones
    attention: Array


class ClassAwarePrompt(nn.Module):
    """Class prompts of one layer, by cross-attention from text features to image tokens."""

    classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, text_features: Array) -> tuple[Array, Made]:
        """x: (B, T, D_v) tokens entering the block; text_features: (B, K, E), those of
        the K likeliest classes, un-normalised.

        Returns the class prompts (B, K, D_v) and what else there is to see of them.
        No gradient flows into x; it flows through text_features into
        the text prompt.
        """
        width, embed = x.shape[-1], text_features.shape[-1]
        tokens = self.param("global_tokens", nn.initializers.normal(0.02), (GLOBAL_TOKENS, width))
        shared = jnp.broadcast_to(tokens, (x.shape[0], *tokens.shape)).astype(self.dtype)
        m = jnp.concatenate([jax.lax.stop_gradient(x), shared], axis=1)

        c = linear(width, embed, "class_projection", self.dtype, bias=True)(
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
        return LayerNorm(name="ln_prompt")(o + c), Made(auxiliary.astype(jnp.float32), a)
