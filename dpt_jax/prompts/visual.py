"""Visual prompts: tokens P_l of a layer (VPT, MaPLe), and those of the likeliest classes (CAVPT).

Symbols: B images, K likeliest classes, C classes, T tokens, n_v visual tokens, G global tokens,
D_t and D_v widths of the towers, E joint embedding, J_v layers with tokens of their own.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from dpt_jax.clip.blocks import Array, LayerNorm
from dpt_jax.prompts import linear, torch_uniform

GLOBAL_TOKENS = 10  # G_l: always 10, as published
ATTENTION_WIDTH = 32


class VisualPrompt(nn.Module):
    """VPT-deep's P: (J_v, n_v, D_v), the tokens of each layer, shared by all images."""

    layers: int
    length: int
    width: int

    @nn.compact
    def __call__(self) -> Array:
        shape = self.layers, self.length, self.width
        return self.param("tokens", nn.initializers.normal(0.02), shape)


class Coupling(nn.Module):
    """MaPLe's coupling: visual tokens computed from the text tokens, P_l = W_l T_l + b_l.

    kernel: (J_v, D_t, D_v), bias: (J_v, D_v). They start as PyTorch's linear layers do: the first
    layer from a draw of its own, the others as copies of one draw, as published.
    """

    layers: int
    text_width: int
    width: int

    @nn.compact
    def __call__(self, context: Array) -> Array:
        """Return P (J_v, n, D_v) of the text tokens T (J_v, n, D_t), float32."""
        kernel = self.param("kernel", self._init, (self.layers, self.text_width, self.width))
        bias = self.param("bias", self._init, (self.layers, self.width))
        return jnp.einsum("lnt,ltv->lnv", context, kernel) + bias[:, None]

    def _init(self, key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
        one = torch_uniform(self.text_width)
        draws = jax.vmap(lambda key: one(key, shape[1:], dtype))(jax.random.split(key))
        return draws[jnp.minimum(jnp.arange(shape[0]), 1)]


class ClassPrompts(NamedTuple):
    """The class prompts of one layer, and outputs for losses and pictures (float32)."""

    tokens: Array  # (B, K, D_v)
    auxiliary_logits: Array  # (B, K, C)
    attention: Array  # (B, K, T + G), over the image tokens, then the global ones


class ClassAwarePrompt(nn.Module):
    """CAVPT's class prompts of one layer, by cross-attention from text features to image tokens.

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
