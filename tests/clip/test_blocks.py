"""The shortcuts of a block and of its gradient against the plain computations they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpt_jax.clip.blocks import Block, attention_weights, deterministic_gather
from dpt_jax.clip.config import TransformerConfig
from dpt_jax.clip.model import causal_mask
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


@pytest.mark.parametrize("shared", [True, False])
def test_memory_is_appended_tokens_whose_outputs_are_dropped(block, shared):
    x, memory = normal(1, 3, 7, 64), normal(2, 1 if shared else 3, 4, 64)
    appended = np.concatenate([x, np.broadcast_to(memory, (3, 4, 64))], axis=1)
    np.testing.assert_allclose(block(x, memory), block(appended)[:, :7], **CLOSE)


def test_causal_memory_is_a_prefix(block):
    whole = normal(3, 2, 9, 64)
    plain = block(whole, mask=triangle(9))
    np.testing.assert_allclose(
        block(whole[:, 4:], whole[:, :4], mask=triangle(5)), plain[:, 4:], **CLOSE
    )


@pytest.mark.parametrize("masked", [True, False])
def test_only_the_asked_tokens(block, masked):
    x, memory, asked = normal(4, 3, 7, 64), normal(5, 3, 2, 64), np.array([[0, 1], [6, 2], [3, 3]])
    mask = triangle(7) if masked else None
    every = np.asarray(block(x, memory, mask=mask))
    some = block(x, memory, mask=mask, query=asked)
    np.testing.assert_allclose(some, every[np.arange(3)[:, None], asked], **CLOSE)


def test_texts_in_one_row_do_not_see_each_other(block):
    """Packed rows against a row a text, padding and memory included."""
    x, memory = normal(3, 2, 9, 64), normal(5, 1, 2, 64)
    owners = jnp.array([[0, 0, 0, 1, 1, 2, 2, 2, 2], [3, 3, 4, 4, 4, 4, 4, -1, -1]])
    packed = np.asarray(block(x, memory, mask=causal_mask(owners)))
    for row, start, stop in [(0, 0, 3), (0, 3, 5), (0, 5, 9), (1, 0, 2), (1, 2, 7)]:
        alone = block(x[row : row + 1, start:stop], memory, mask=triangle(stop - start))
        np.testing.assert_allclose(packed[row, start:stop], alone[0], **CLOSE)


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
    """The value and the gradient of an index, without the additions in no fixed order."""
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
