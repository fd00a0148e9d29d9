"""The visual prompt (VPT-deep): learned tokens P_l for every layer they are used in.

Symbols: n_v visual tokens, D_t and D_v widths of the towers, J_v layers that have tokens of their
own.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dpt_jax.clip.vision import LayerPrompts, no_memory
from dpt_jax.prompts.linear import torch_uniform


class VisualPrompt(nn.Module):
    """P: (layers, n_v, D_v), one set of tokens a layer, shared by all images."""

    layers: int
    length: int
    width: int

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param(
            "tokens", nn.initializers.normal(0.02), (self.layers, self.length, self.width)
        )


class Coupling(nn.Module):
    """Visual tokens made of the text prompt's, P_l = W_l T_l + b_l, row by row.

    kernel: (J_v, D_t, D_v), bias: (J_v, D_v). They start as PyTorch's linear layers do, the first
    with a draw of its own and the others with copies of one, as published.
    """

    layers: int
    text_width: int
    width: int

    @nn.compact
    def __call__(self, context: jax.Array) -> jax.Array:
        """Return P (J_v, n, D_v) of the text tokens T (J_v, n, D_t), float32."""
        init = drawn_twice(torch_uniform(self.text_width))
        kernel = self.param("kernel", init, (self.layers, self.text_width, self.width))
        bias = self.param("bias", init, (self.layers, self.width))
        return jnp.einsum("lnt,ltv->lnv", context, kernel) + bias[:, None]


def drawn_twice(init: Any) -> Any:
    """Return an initializer that draws the first layer and one other, which the rest copy."""

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        two = jax.vmap(lambda key: init(key, shape[1:], dtype))(jax.random.split(key))
        return two[jnp.minimum(jnp.arange(shape[0]), 1)]

    return draw


def layer_prompts(tokens: jax.Array, layers: int, carry_on: bool) -> list[LayerPrompts]:
    """Return what the first `layers` blocks see of the tokens P (J_v, n_v, D_v), J_v of them at
    least one.

    A token whose output is thrown away before the next block is a memory of its block. So all are
    memories but, where they carry on behind layer J_v, those of that layer: they join the sequence.
    """
    if not carry_on:
        return [LayerPrompts(layers, as_memory, tokens)]
    memories, joining = tokens[:-1], tokens[-1]
    before = [LayerPrompts(len(memories), as_memory, memories)] if len(memories) else []
    return [*before, LayerPrompts(layers - len(memories), no_memory, joining=joining)]


def as_memory(tokens: jax.Array, x: jax.Array) -> tuple[jax.Array, None]:
    """Return a layer's tokens (n_v, D_v) as the memory (1, n_v, D_v) of all images."""
    return tokens[None], None
