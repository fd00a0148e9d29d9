"""The visual prompt (VPT-deep): learned tokens P_l for every layer that has its own.

Symbols: n_v visual tokens, D_t and D_v widths of the towers, J_v layers with tokens of their own.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from dpt_jax.prompts.linear import torch_uniform


class VisualPrompt(nn.Module):
    """P: (J_v, n_v, D_v), the tokens of each layer, shared by all images."""

    layers: int
    length: int
    width: int

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param(
            "tokens", nn.initializers.normal(0.02), (self.layers, self.length, self.width)
        )


class Coupling(nn.Module):
    """MaPLe's coupling: visual tokens computed from the text tokens, P_l = W_l T_l + b_l.

    kernel: (J_v, D_t, D_v), bias: (J_v, D_v). They start as PyTorch's linear layers do: the first
    layer from a draw of its own, the others as copies of one draw, as published.
    """

    layers: int
    text_width: int
    width: int

    @nn.compact
    def __call__(self, context: jax.Array) -> jax.Array:
        """Return P (J_v, n, D_v) of the text tokens T (J_v, n, D_t), float32."""
        kernel = self.param("kernel", self._init, (self.layers, self.text_width, self.width))
        bias = self.param("bias", self._init, (self.layers, self.width))
        return jnp.einsum("lnt,ltv->lnv", context, kernel) + bias[:, None]

    def _init(
        self, key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
    ) -> jax.Array:
        one = torch_uniform(self.text_width)
        draws = jax.vmap(lambda key: one(key, shape[1:], dtype))(jax.random.split(key))
        return draws[jnp.minimum(jnp.arange(shape[0]), 1)]
