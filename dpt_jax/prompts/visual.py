"""The visual prompt (VPT-deep): learned tokens P_l for every layer they are used in.

Symbols: n_v visual tokens, D_v width of the image tower, J_v layers that have tokens of their own.
"""

import flax.linen as nn
import jax

from dpt_jax.clip.vision import LayerPrompts, no_memory


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
