"""The learned prompts, a module for each kind, and the linear layers that they share."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from dpt_jax.clip.blocks import Params

# The learned parameters by part: {"text": …, "visual" or "coupling": …, "meta_net": …,
# "cavpt": …, "weights": …, "classifier": …}, as far as the method has them.
Prompts = Params


def torch_uniform(fan_in: int) -> nn.initializers.Initializer:
    """Return U(±1/√fan_in), the initial weight and bias of PyTorch's linear layer."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )


def linear(features: int, fan_in: int, name: str, dtype: DTypeLike, bias: bool = False) -> nn.Dense:
    """Return a linear layer that starts as PyTorch's does, as in the published code.

    Its product is computed in `dtype`. A bias is added in float32, so its gradient is summed in
    float32 too, and the result is float32.
    """
    init = torch_uniform(fan_in)

    def promote(*arrays: jax.Array | None, **_: object) -> list[jax.Array | None]:
        x, kernel, bias = arrays
        return [jnp.asarray(x, dtype), jnp.asarray(kernel, dtype), bias]

    return nn.Dense(
        features, use_bias=bias, kernel_init=init, bias_init=init, promote_dtype=promote, name=name
    )
