"""The shortcuts of a block and of its gradient against the computations that they replace."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpt_jax.clip.blocks import Block, attention_weights, deterministic_gather
from dpt_jax.clip.config import TransformerConfig
from tests.helpers.plain_towers import CLOSE, normal, random_like, triangle

pytestmark = pytest.mark.compiles

CONFIG = TransformerConfig(width=64, layers=1, heads=2, mlp_width=128)


@pytest.fixture(scope="module")
def block():
    module = Block(CONFIG)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 1, 64)))
    params = random_like(shapes, seed=0, scale=0.2)
    return jax.jit(
        lambda *args, **kwargs: module.apply(params, *args, **kwargs), static_argnames="method"
    )


@pytest.mark.parametrize("masked", [True, False])
def test_attention_that_is_shown_is_the_one_that_is_computed(block, masked):
    """The weights, applied to values, give the fused result."""
    query, key, value = normal(6, 2, 5, 2, 32), normal(7, 2, 5, 2, 32), normal(8, 2, 5, 2, 32)
    mask = triangle(5) if masked else None
    fused = jax.jit(jax.nn.dot_product_attention)(
        query, key, value, mask=None if mask is None else mask[:, None]
    )
    weights = jax.jit(attention_weights)(query, key, mask)
    np.testing.assert_allclose(np.einsum("bhqk,bkhd->bqhd", weights, value), fused, **CLOSE)
    x, memory = normal(1, 2, 5, 64), normal(2, 1, 3, 64)
    shown = block(x, memory, mask=mask, query=np.array([[4]]), method="attention")
    assert shown.shape == (2, 2, 1, 8)
    np.testing.assert_allclose(shown.sum(-1), 1, rtol=1e-5)


def test_rows_that_are_taken_several_times_have_a_gradient_of_one_order():
    """As indexing and its gradient, but with sums in a fixed order."""
    table, numbers = jnp.asarray(normal(14, 5, 8)), jnp.array([[0, 3, 3], [3, 1, 0]])
    weight = normal(15, 2, 3, 8)

    def gradient(take):
        return jax.jit(jax.grad(lambda table: (take(table, numbers) * weight).sum()))

    def plain(table, numbers):
        return table[numbers]

    np.testing.assert_array_equal(deterministic_gather(table, numbers), plain(table, numbers))
    np.testing.assert_allclose(
        gradient(deterministic_gather)(table), gradient(plain)(table), **CLOSE
    )
    assert "scatter" in str(jax.make_jaxpr(gradient(plain))(table))
    assert "scatter" not in str(jax.make_jaxpr(gradient(deterministic_gather))(table))
