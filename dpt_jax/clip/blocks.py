"""Transformer blocks that look at prompt tokens, and their stack.

A prompt is a *memory* of a block: tokens that are looked at (keys and values)
but neither look nor survive (no queries, no MLP, no output). Appending tokens
to a block's input and dropping their outputs again computes the same thing and
costs more.

Shapes: B rows of a batch, T tokens, M memory tokens, D width. Parameters are
float32 or the compute dtype; layer norm and softmax always run in float32.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from dpt_jax.clip.config import TransformerConfig
from dpt_jax.clip.rows import spread

Array = jax.Array
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}


WEIGHTS = "weights"
# What a block keeps for its backward pass besides its input, by the name of the choice.
KEPT = {
    "none": jax.checkpoint_policies.save_anything_except_these_names(WEIGHTS),
    "matmuls": jax.checkpoint_policies.save_only_these_names(
        "query", "key", "value", "attended", "hidden"
    ),
    "blocks": jax.checkpoint_policies.nothing_saveable,
}


class LayerNorm(nn.LayerNorm):
    """Layer norm computed in float32, returned in the dtype of its input."""

    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    use_fast_variance: bool = False

    @nn.compact
    def __call__(self, x: Array, *, mask: Array | None = None) -> Array:
        return super().__call__(x, mask=mask).astype(x.dtype)


class Block(nn.Module):
    """One pre-LN transformer block."""

    config: TransformerConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        memory: Array | None = None,
        *,
        mask: Array | None = None,
        query: Array | None = None,
        attention: bool = False,
    ) -> Any:
        """Updates the tokens of x, which attend to themselves and to the memory.

        x: (B, T, D). memory: (B or 1, M, D), seen by every token. mask: (B or 1,
        T, T) bool, which tokens of x each token of x sees; all, where None.
        query: (B or 1, Q) int32, the only tokens whose outputs are wanted; the
        result is then (B, Q, D). attention: asks for (result, what each of its
        tokens looks at: (B, heads, Q or T, T + M), see `attention_weights`).
        """
        config = self.config
        norm_1, norm_2 = (LayerNorm(config.layer_norm_eps, name=f"ln_{i}") for i in (1, 2))
        heads = (config.heads, config.width // config.heads)
        to_query, to_key, to_value = (
            nn.DenseGeneral(heads, dtype=self.dtype, name=name)
            for name in ("query", "key", "value")
        )

        normed = norm_1(x)
        keys, values = (
            checkpoint_name(to_key(normed), "key"),
            checkpoint_name(to_value(normed), "value"),
        )
        if query is not None:
            places = query[..., None]
            x, normed = (jnp.take_along_axis(t, places, axis=1) for t in (x, normed))
            mask = None if mask is None else jnp.take_along_axis(mask, places, axis=1)
        if memory is not None:
            seen = norm_1(memory)
            shape = (x.shape[0], memory.shape[1], *heads)
            keys = jnp.concatenate([keys, spread(to_key(seen), shape)], axis=1)
            values = jnp.concatenate([values, spread(to_value(seen), shape)], axis=1)
            if mask is not None:
                mask = jnp.pad(mask, ((0, 0), (0, 0), (0, memory.shape[1])), constant_values=True)
        queries = checkpoint_name(to_query(normed), "query")

        attended = jax.nn.dot_product_attention(
            queries, keys, values, mask=None if mask is None else mask[:, None]
        )
        x = x + nn.DenseGeneral(config.width, axis=(-2, -1), dtype=self.dtype, name="out")(attended)
        x = checkpoint_name(x, "attended")
        hidden = checkpoint_name(
            nn.Dense(config.mlp_width, dtype=self.dtype, name="mlp_in")(norm_2(x)), "hidden"
        )
        x = x + nn.Dense(config.width, dtype=self.dtype, name="mlp_out")(
            ACTIVATIONS[config.activation](hidden)
        )
        return (x, attention_weights(queries, keys, mask)) if attention else x


def attention_weights(queries: Array, keys: Array, mask: Array | None = None) -> Array:
    """Return softmax(q kᵀ/√d) of (B, Q, heads, d) and (B, K, heads, d): (B, heads, Q, K), float32.

    mask: (B or 1, Q, K).
    """
    scores = jnp.einsum("bqhd,bkhd->bhqk", queries, keys, preferred_element_type=jnp.float32)
    scores = scores * queries.shape[-1] ** -0.5
    return jax.nn.softmax(scores, where=None if mask is None else mask[:, None])


class Transformer(nn.Module):
    """A stack of blocks whose weights carry a leading layer axis, so that layers scan."""

    config: TransformerConfig
    dtype: Any = jnp.float32
    remat: str = "matmuls"

    def setup(self) -> None:
        self._block = Block(self.config, self.dtype, parent=None)
        self.blocks = self.param("blocks", self._init_blocks)

    def _init_blocks(self, key: Array) -> Any:
        tokens = jnp.zeros((1, 1, self.config.width))
        keys = jax.random.split(key, self.config.layers)
        return jax.vmap(lambda k: self._block.init(k, tokens)["params"])(keys)

    def block(self, layer: int | Array) -> Callable[..., Array]:
        """The block of one layer (0-based), as a function with Block's arguments."""
        weights = jax.tree.map(
            lambda w: checkpoint_name(
                jax.lax.dynamic_index_in_dim(w, layer, keepdims=False), WEIGHTS
            ),
            self.blocks,
        )

        def block(*args: Any, **kwargs: Any) -> Any:
            return self._block.apply({"params": weights}, *args, **kwargs)

        return block

    def scan(
        self,
        step: Callable[[Callable[..., Array], Any, Any], tuple[Any, Any]],
        carry: Any,
        start: int,
        stop: int,
        per_layer: Any = None,
    ) -> tuple[Any, Any]:
        """Runs layers start..stop-1 (0-based) as one compiled loop.

        step(block, carry, inputs) -> (carry, output), where inputs is the
        layer's slice of per_layer; returns the last carry and stacked outputs.
        """

        def body(carry: Any, inputs: tuple[Any, Any]) -> tuple[Any, Any]:
            layer, own = inputs
            return step(self.block(layer), carry, own)

        # The loop counts layers and takes each one's weights where they are: scanned over, those of
        # start..stop-1 would be copied first, and kept a second time for the backward pass.
        body = jax.checkpoint(body, policy=KEPT[self.remat], prevent_cse=False)
        return jax.lax.scan(body, carry, (jnp.arange(start, stop), per_layer))
