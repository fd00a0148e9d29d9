"""Transformer blocks that take extra key/value tokens, and their stack.

A prompt token whose output is dropped after the block is an *extra key/value token*: it has keys
and values, but no query, no MLP and no output. Appending it to the block's input and dropping its
output is equivalent but costs more.

Shapes: B batch rows, T tokens, M extra key/value tokens, D width. Parameters are float32 or the
compute dtype; layer norm and softmax run in float32.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from dpt_jax.clip.config import ACTIVATIONS, TransformerConfig

Array = jax.Array
PyTree = Any  # nested dicts, tuples and lists of arrays
Params = dict[str, Any]  # nested dicts of arrays by name
Carry = TypeVar("Carry")

WEIGHTS = "weights"
# What a block saves for its backward pass in addition to its input, by train.remat.
REMAT_POLICIES = {
    "none": jax.checkpoint_policies.save_anything_except_these_names(WEIGHTS),
    "matmuls": jax.checkpoint_policies.save_only_these_names(
        "query", "key", "value", "attended", "hidden"
    ),
    "blocks": jax.checkpoint_policies.nothing_saveable,
}


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
    # A GPU would round the gradient to TF32 before adding.
    total = jnp.einsum("in,id->nd", one_hot, rows, precision=jax.lax.Precision.HIGHEST)
    return total.astype(like.dtype), None


deterministic_gather.defvjp(_forward, _backward)


class LayerNorm(nn.LayerNorm):
    """Layer norm computed in float32 and returned in the dtype of its input."""

    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32
    use_fast_variance: bool = False

    @nn.compact
    def __call__(self, x: Array, *, mask: Array | None = None) -> Array:
        return super().__call__(x, mask=mask).astype(x.dtype)


class Block(nn.Module):
    """One pre-LN transformer block of a tower.

    The collection "adapters" has low-rank changes: "low_rank" is {"a": (r, D), "b": (D, r)} by
    the name of a projection. In training, "dropout" has keys (B,) and the rate.
    """

    config: TransformerConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        config, dtype = self.config, self.dtype
        heads = (config.heads, config.width // config.heads)
        self.ln_1 = LayerNorm(config.layer_norm_eps)
        self.query, self.key, self.value = (
            nn.DenseGeneral(heads, dtype=dtype) for _ in ("query", "key", "value")
        )
        self.out = nn.DenseGeneral(config.width, axis=(-2, -1), dtype=dtype)
        self.ln_2 = LayerNorm(config.layer_norm_eps)
        self.mlp_in = nn.Dense(config.mlp_width, dtype=dtype)
        self.mlp_out = nn.Dense(config.width, dtype=dtype)

    def __call__(
        self,
        x: Array,
        extra_kv: Array | None = None,
        *,
        mask: Array | None = None,
        query: Array | None = None,
    ) -> Array:
        """Return the outputs of the tokens of x, which attend to themselves and to extra_kv.

        Args:
          x: (B, T, D).
          extra_kv: (B or 1, M, D), attended to by every token.
          mask: (B or 1, T, T) bool, which tokens of x each token of x attends to; None for all.
          query: (B or 1, Q) int32, positions of the only tokens whose outputs are computed; None
            for all.

        Returns:
          (B, T, D), or (B, Q, D) with `query`.
        """
        x, queries, keys, values, mask = self._project(x, extra_kv, mask, query)
        attended = jax.nn.dot_product_attention(
            queries, keys, values, mask=None if mask is None else mask[:, None]
        )
        x = checkpoint_name(x + self._linear("out", attended), "attended")
        hidden = checkpoint_name(self.mlp_in(self.ln_2(x)), "hidden")
        return x + self.mlp_out(ACTIVATIONS[self.config.activation](hidden))

    def attention(
        self,
        x: Array,
        extra_kv: Array | None = None,
        *,
        mask: Array | None = None,
        query: Array | None = None,
    ) -> Array:
        """Return the attention weights (B, heads, T or Q, T + M) of `__call__`, float32.

        For pictures. In one program with `__call__` the projections are computed once.
        """
        _, queries, keys, _, mask = self._project(x, extra_kv, mask, query)
        return attention_weights(queries, keys, mask)

    def _project(
        self, x: Array, extra_kv: Array | None, mask: Array | None, query: Array | None
    ) -> tuple[Array, Array, Array, Array, Array | None]:
        """Return x at the queries, queries, keys, values (B, tokens, heads, d), and the mask."""
        normed = self.ln_1(x)
        keys = checkpoint_name(self._linear("key", normed), "key")
        values = checkpoint_name(self._linear("value", normed), "value")
        if query is not None:
            positions = query[..., None]
            x, normed = (jnp.take_along_axis(t, positions, axis=1) for t in (x, normed))
            mask = None if mask is None else jnp.take_along_axis(mask, positions, axis=1)
        if extra_kv is not None:
            extra = self.ln_1(extra_kv)
            shape = (x.shape[0], extra_kv.shape[1], *keys.shape[2:])
            own = (self._linear(name, extra, drop=False) for name in ("key", "value"))
            extra_keys, extra_values = (broadcast(x, shape) for x in own)
            keys = jnp.concatenate([keys, extra_keys], axis=1)
            values = jnp.concatenate([values, extra_values], axis=1)
            if mask is not None:
                mask = jnp.pad(mask, ((0, 0), (0, 0), (0, extra_kv.shape[1])), constant_values=True)
        queries = checkpoint_name(self._linear("query", normed), "query")
        return x, queries, keys, values, mask

    def _linear(self, name: str, x: Array, drop: bool = True) -> Array:
        """Return a projection of x (B, T, …), with its learned change.

        drop: whether the change has dropout in training. Extra key/value tokens, which rows may
        share, have none.
        """
        y = getattr(self, name)(x)
        low_rank: Params = self.get_variable("adapters", "low_rank", {})
        if name not in low_rank:
            return y
        a, b = (low_rank[name][factor].astype(self.dtype) for factor in ("a", "b"))
        x = x.reshape(*x.shape[:2], a.shape[-1])
        dropout: PyTree = self.get_variable("adapters", "dropout") if drop else None
        if dropout is not None:
            keys, rate = dropout
            x = dropped(x, keys, rate, [*low_rank].index(name))
        return y + (x @ a.T @ b.T).reshape(y.shape)


def dropped(x: Array, keys: Array, rate: Array, mask: int) -> Array:
    """Return x (B, T, D) with dropout; a row's mask depends only on its key, of keys (B,).

    mask: A number. Different numbers give independent masks.
    """
    keep = jax.vmap(
        lambda key: jax.random.bernoulli(jax.random.fold_in(key, mask), 1 - rate, x.shape[1:])
    )(keys)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def attention_weights(queries: Array, keys: Array, mask: Array | None = None) -> Array:
    """Return softmax(q kᵀ/√d) of (B, Q, heads, d) and (B, K, heads, d): (B, heads, Q, K), float32.

    mask: (B or 1, Q, K).
    """
    scores = jnp.einsum("bqhd,bkhd->bhqk", queries, keys, preferred_element_type=jnp.float32)
    scores = scores * queries.shape[-1] ** -0.5
    return jax.nn.softmax(scores, where=None if mask is None else mask[:, None])


class Transformer(nn.Module):
    """A stack of blocks whose parameters are stacked over layers, so that layers can be scanned.

    Attributes:
      config: sizes of the tower.
      dtype: compute dtype.
      remat: what the backward pass saves, a key of REMAT_POLICIES.
    """

    config: TransformerConfig
    dtype: DTypeLike = jnp.float32
    remat: str = "matmuls"

    def setup(self) -> None:
        self._block = Block(self.config, self.dtype, parent=None)
        # `param` would trace the initialisation at each call, to check the shapes.
        self.blocks: Params = self.get_variable("params", "blocks")
        if self.blocks is None:
            self.blocks = self.param("blocks", self._init)
        self._low_rank: PyTree = self.get_variable("adapters", "low_rank")
        self._dropout: PyTree = self.get_variable("adapters", "dropout")

    def _init(self, key: Array) -> Params:
        tokens = jnp.zeros((1, 1, self.config.width))
        keys = jax.random.split(key, self.config.layers)
        return jax.vmap(lambda k: self._block.init(k, tokens)["params"])(keys)

    def block(self, layer: int | Array) -> Block:
        """Return the block of one layer (0-based), bound to its parameters."""

        def own(stacked: Array) -> Array:
            one = jax.lax.dynamic_index_in_dim(stacked, layer, keepdims=False)
            return checkpoint_name(one, WEIGHTS)

        variables: Params = {"params": jax.tree.map(own, self.blocks)}
        if self._low_rank is not None:
            variables["adapters"] = {"low_rank": jax.tree.map(own, self._low_rank)}
            if self._dropout is not None:
                keys, rate = self._dropout
                keys = jax.vmap(lambda key: jax.random.fold_in(key, layer))(keys)
                variables["adapters"]["dropout"] = keys, rate
        return self._block.bind(variables)

    def scan(
        self,
        step: Callable[[Block, Carry, PyTree], Carry],
        carry: Carry,
        start: int,
        stop: int,
        per_layer: PyTree = None,
    ) -> Carry:
        """Run layers start … stop - 1 (0-based) as one compiled loop.

        Args:
          step: (block, carry, the layer's slice of per_layer) -> carry.
          per_layer: arrays with a leading axis of stop - start layers.
        """

        def body(carry: Carry, inputs: tuple[Array, PyTree]) -> tuple[Carry, None]:
            layer, own = inputs
            return step(self.block(layer), carry, own), None

        if start == stop:
            return carry
        # The loop counts layers and slices the parameters of each. A scan over the parameters of
        # start … stop - 1 would copy them first, and save them again for the backward pass.
        body = jax.checkpoint(body, policy=REMAT_POLICIES[self.remat], prevent_cse=False)
        return jax.lax.scan(body, carry, (jnp.arange(start, stop), per_layer))[0]
