"""Rows that are used several times, and how the gradients of their uses are added up."""

import jax
import jax.numpy as jnp

Array = jax.Array


def spread(x: Array, shape: tuple[int, ...]) -> Array:
    """Return x, broadcast to a shape; its gradient is summed in float32, whatever its dtype is."""
    return jnp.broadcast_to(x.astype(jnp.float32), shape).astype(x.dtype)


@jax.custom_vjp
def take_rows(table: Array, numbers: Array) -> Array:
    """Return table[numbers]: (n, D), (…) -> (…, D).

    Where a row is taken several times, JAX's own gradient adds into it in no
    fixed order on a GPU, so that two runs differ in the last bits. This one is a
    matrix product of the numbers, one-hot, which for small tables costs nothing.
    """
    return table[numbers]


def _forward(table: Array, numbers: Array) -> tuple[Array, tuple[Array, Array]]:
    return table[numbers], (numbers, jnp.zeros((len(table), 0), table.dtype))


def _backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, None]:
    numbers, like = kept
    one_hot = jax.nn.one_hot(numbers.reshape(-1), len(like), dtype=gradient.dtype)
    rows = gradient.reshape(-1, gradient.shape[-1])
    # The highest precision, since a GPU would round the gradient to fewer bits before it adds.
    total = jnp.einsum("in,id->nd", one_hot, rows, precision=jax.lax.Precision.HIGHEST)
    return total.astype(like.dtype), None


take_rows.defvjp(_forward, _backward)
