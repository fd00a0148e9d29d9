"""The visual prompt (VPT-deep): learned tokens P_l for every layer they are used in."""

import flax.linen as nn
import jax


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
