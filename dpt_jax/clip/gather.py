"""Gathers and broadcasts whose gradients are summed in a fixed order and in float32."""

import jax
import jax.numpy as jnp

Array = jax.Array


def broadcast(x: Array, shape: tuple[int, ...]) -> Array:
    """Broadcast x to a shape; the gradient is summed in float32, whatever the dtype of x."""
    return jnp.broadcast_to(x.astype(jnp.float32), shape).astype(x.dtype)


@jax.custom_vjp
def deterministic_gather(table: Array, indices: Array) -> Array:
    """Return table[indices]: (n, D), (…) -> (…, D).

    JAX's own gradient of a gather adds the rows of repeated indices in no fixed order on a GPU, so
    two runs differ in the last bits. This gradient is a matrix product with the one-hot indices,
    which costs nothing for small tables.
    """
    return table[indices]


def _forward(table: Array, indices: Array) -> tuple[Array, tuple[Array, Array]]:
    return table[indices], (indices, jnp.zeros((len(table), 0), table.dtype))


def _backward(residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, None]:
    indices, like = residuals
    one_hot = jax.nn.one_hot(indices.reshape(-1), len(like), dtype=gradient.dtype)
    rows = gradient.reshape(-1, gradient.shape[-1])
    # A GPU would round the gradient to TF32 before it adds.
    total = jnp.einsum("in,id->nd", one_hot, rows, precision=jax.lax.Precision.HIGHEST)
    return total.astype(like.dtype), None


deterministic_gather.defvjp(_forward, _backward)
