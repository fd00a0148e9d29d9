"""Linear layers that start as PyTorch's, which the published methods are made of."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def torch_uniform(fan_in: int) -> Any:
    """Return U(±1/√fan_in), what PyTorch starts the weight and bias of a linear layer with."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )


def linear(features: int, fan_in: int, name: str, dtype: Any, bias: bool = False) -> nn.Dense:
    """Return a linear layer that starts as PyTorch's does.

    Its product is of the dtype. A bias is added in float32, in which its gradient is summed too,
    and so is the result.
    """
    init = torch_uniform(fan_in)

    def promote(*arrays: jax.Array | None, **_: Any) -> list[jax.Array | None]:
        x, kernel, bias = arrays
        return [jnp.asarray(x, dtype), jnp.asarray(kernel, dtype), bias]

    return nn.Dense(
        features, use_bias=bias, kernel_init=init, bias_init=init, promote_dtype=promote, name=name
    )
