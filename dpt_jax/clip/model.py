"""CLIP's two transformers as Flax modules that accept prompt tokens at every layer.

A prompt is a *memory* of a block: tokens that are looked at (keys and values)
but neither look nor survive (no queries, no MLP, no output). Appending tokens
to a block's input and dropping their outputs again computes the same thing and
costs more.

Shapes: B images, C texts, R rows of packed texts, T tokens, M memory tokens,
D width, E joint embedding. Parameters are float32 or the compute dtype; layer
norm and softmax always run in float32.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

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


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes of one tower."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: str = "quick_gelu"
    layer_norm_eps: float = 1e-5


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Sizes of a CLIP with a ViT image tower (image_size and patch_size in pixels)."""

    embed_dim: int
    image_size: int
    patch_size: int
    vision: TransformerConfig
    text: TransformerConfig
    vocab_size: int = 49408
    context_length: int = 77

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size


class TextLayout(NamedTuple):
    """C texts, split into the tokens they all begin with and their own tokens.

    Attention is causal, so the shared beginning is the same for every text and
    is encoded once (P tokens); the own tokens look at it as a memory. Several
    texts share a row of T tokens, where each sees itself only, so that the cost
    goes with the tokens there are and not with the longest text.

    A place holds either a token id or, where `*context` is not negative, that
    row of the learned context (of all classes' rows, one class after the other,
    where each has its own).
    """

    prefix_tokens: np.ndarray | Array  # (P,) int32
    prefix_context: np.ndarray | Array  # (P,) int32, -1: no context here
    tokens: np.ndarray | Array  # (R, T) int32
    context: np.ndarray | Array  # (R, T) int32, -1: no context here
    text: np.ndarray | Array  # (R, T) int32, the text a place belongs to, -1: padding
    position: np.ndarray | Array  # (R, T) int32, where it stands in its text, the prefix counted
    ends: np.ndarray | Array  # (R, Q) int32, places of the row's end-of-text tokens, padded with 0
    order: np.ndarray | Array  # (C,) int32, where each text's end is in the flattened `ends`


class LayerPrompts(NamedTuple):
    """Prompt tokens for the next `layers` blocks of the vision tower.

    `make(inputs, x)` returns (memory (B or 1, M, D) or None, named outputs) for
    the tokens x (B, T, D) entering a block; `inputs` is that block's slice of
    `per_layer`, a tree of arrays with a leading axis of `layers`.
    """

    layers: int
    make: Callable[[Any, Array], tuple[Array | None, Any]]
    per_layer: Any = None


class Seen(NamedTuple):
    """What the vision tower makes of B images.  Unused entries cost nothing under jit."""

    features: Array  # (B, E), float32
    attention: Array  # (B, heads, 1 + patches + M), float32: what the class token of the last block looks at
    made: list[Any]  # per element of the prompts, the named outputs of its `make`


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
            keys = jnp.concatenate([keys, jnp.broadcast_to(to_key(seen), shape)], axis=1)
            values = jnp.concatenate([values, jnp.broadcast_to(to_value(seen), shape)], axis=1)
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
    """softmax(q kᵀ/√d) of (B, Q, heads, d) and (B, K, heads, d): (B, heads, Q, K), float32.  mask: (B or 1, Q, K)."""
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


class VisionTower(nn.Module):
    """Image tower (ViT): patches, class token first, pre-LN blocks, projection."""

    config: CLIPConfig
    dtype: Any = jnp.float32
    remat: str = "matmuls"

    def setup(self) -> None:
        config, width = self.config, self.config.vision.width
        normal = nn.initializers.normal(width**-0.5)
        patch_values = 3 * config.patch_size**2
        self.patch_embedding = self.param("patch_embedding", normal, (patch_values, width))
        self.class_embedding = self.param("class_embedding", normal, (width,))
        self.position_embedding = self.param(
            "position_embedding", normal, (config.grid**2 + 1, width)
        )
        self.ln_pre = LayerNorm(config.vision.layer_norm_eps)
        self.transformer = Transformer(config.vision, self.dtype, self.remat)
        self.ln_post = LayerNorm(config.vision.layer_norm_eps)
        self.projection = self.param("projection", normal, (width, config.embed_dim))

    def embed(self, images: Array) -> Array:
        """Normalised images (B, H, W, 3) -> tokens entering the first block (B, 1 + patches, D)."""
        batch, grid, patch = images.shape[0], self.config.grid, self.config.patch_size
        images = images[:, : grid * patch, : grid * patch].astype(self.dtype)
        patches = images.reshape(batch, grid, patch, grid, patch, 3).transpose(0, 1, 3, 2, 4, 5)
        x = patches.reshape(batch, grid**2, -1) @ self.patch_embedding.astype(self.dtype)
        first = jnp.broadcast_to(self.class_embedding.astype(self.dtype), (batch, 1, x.shape[-1]))
        x = jnp.concatenate([first, x], axis=1) + self.position_embedding.astype(self.dtype)
        return self.ln_pre(x)

    def __call__(self, images: Array, prompts: Sequence[LayerPrompts] = ()) -> Seen:
        """What the tower makes of the images.

        images: normalised, (B, H, W, 3). prompts: from the first layer on;
        layers after the last of them see no prompt.
        """
        layers = self.config.vision.layers
        x, start, made = self.embed(images), 0, []
        for prompt in prompts:
            x, attention, output = self._run(x, start, prompt)
            start += prompt.layers
            made.append(output)
        if start < layers:
            x, attention, _ = self._run(
                x, start, LayerPrompts(layers - start, lambda _, x: (None, None))
            )
        features = self.ln_post(x[:, 0]) @ self.projection.astype(self.dtype)
        return Seen(features.astype(jnp.float32), attention, made)

    def _run(self, x: Array, start: int, prompt: LayerPrompts) -> tuple[Array, Any, Any]:
        """Tokens x through the blocks from `start` on that this prompt is for: (tokens, the class token's attention
        where the last block is among them, what the prompt made)."""

        def step(block: Callable[..., Array], x: Array, inputs: Any) -> tuple[Array, Any]:
            memory, output = prompt.make(inputs, x)
            return block(x, memory), output

        ends = start + prompt.layers == self.config.vision.layers
        scanned = prompt.layers - ends
        attention = output = None
        if scanned:
            inputs = jax.tree.map(lambda a: a[:scanned], prompt.per_layer)
            x, output = self.transformer.scan(step, x, start, start + scanned, inputs)
        if ends:
            # Only the class token leaves the last block, so only its query is computed.
            memory, final = prompt.make(jax.tree.map(lambda a: a[-1], prompt.per_layer), x)
            first = jnp.zeros((1, 1), jnp.int32)
            x, looked = self.transformer.block(start + scanned)(
                x, memory, query=first, attention=True
            )
            attention = looked[:, :, 0]
            final = jax.tree.map(lambda a: a[None], final)
            output = (
                jax.tree.map(lambda a, b: jnp.concatenate([a, b]), output, final)
                if scanned
                else final
            )
        return x, attention, output


class TextTower(nn.Module):
    """Text tower: token and position embeddings, causal blocks, projection at the end of text."""

    config: CLIPConfig
    dtype: Any = jnp.float32
    remat: str = "matmuls"

    def setup(self) -> None:
        config, width = self.config, self.config.text.width
        normal = nn.initializers.normal(0.02)
        self.token_embedding = self.param("token_embedding", normal, (config.vocab_size, width))
        self.position_embedding = self.param(
            "position_embedding", normal, (config.context_length, width)
        )
        self.transformer = Transformer(config.text, self.dtype, self.remat)
        self.ln_final = LayerNorm(config.text.layer_norm_eps)
        self.projection = self.param("projection", normal, (width, config.embed_dim))

    def __call__(self, layout: TextLayout, context: Array | None = None) -> Array:
        """Text features (C, E), float32, not normalised.  context: see `rows`."""
        ends = self.rows(layout, context)
        return ends.reshape(-1, ends.shape[-1])[jnp.asarray(layout.order)]

    def rows(self, layout: TextLayout, context: Array | None = None) -> Array:
        """Features (R, Q, E) at the `ends` of every row, float32, not normalised.

        context: learned tokens, (depth, n, D), or (depth, C, n, D) where each
        text has its own. context[0] enters with the token embeddings;
        context[l] replaces what the context places hold before layer l.
        """
        blocks, last = self.transformer, self.config.text.layers - 1
        masks = causal(jnp.zeros_like(layout.prefix_tokens)[None]), causal(jnp.asarray(layout.text))
        places = jnp.asarray(layout.prefix_context)[None], jnp.asarray(layout.context)

        def place(carry: tuple[Array, ...], rows: Array) -> tuple[Array, ...]:
            """Puts the rows (n, D) or (C, n, D) of the context where the layout has them."""
            rows = rows.reshape(-1, rows.shape[-1])
            return tuple(
                jnp.where(index[..., None] >= 0, rows[jnp.maximum(index, 0)].astype(x.dtype), x)
                for x, index in zip(carry, places, strict=True)
            )

        def step(block: Callable[..., Array], carry: Any, rows: Array | None) -> tuple[Any, None]:
            prefix, own = carry if rows is None else place(carry, rows)
            return (block(prefix, mask=masks[0]), block(own, prefix, mask=masks[1])), None

        tokens = layout.prefix_tokens[None], layout.tokens
        positions = jnp.arange(len(layout.prefix_tokens))[None], layout.position
        carry = tuple(jnp.take(self.token_embedding, t, axis=0).astype(self.dtype) for t in tokens)
        if context is not None:
            carry = place(carry, context[0])
        carry = tuple(
            x + jnp.take(self.position_embedding, position, axis=0).astype(self.dtype)
            for x, position in zip(carry, positions, strict=True)
        )

        depth = 1 if context is None else min(context.shape[0], last)
        start = 0
        if context is not None and depth > 1:
            carry, _ = blocks.scan(step, carry, 0, 1)
            carry, _ = blocks.scan(step, carry, 1, depth, context[1:depth])
            start = depth
        carry, _ = blocks.scan(step, carry, start, last)
        if context is not None and context.shape[0] > last > 0:
            carry = place(carry, context[last])
        prefix, own = carry
        ends = blocks.block(last)(own, prefix, mask=masks[1], query=jnp.asarray(layout.ends))
        return (self.ln_final(ends) @ self.projection.astype(self.dtype)).astype(jnp.float32)


def share(layout: TextLayout, axis: str) -> TextLayout:
    """The rows of a layout that are this device's, of the devices along a mapped axis; `order` stays that of all."""
    devices, device = jax.lax.axis_size(axis), jax.lax.axis_index(axis)
    rows = -(-layout.tokens.shape[0] // devices)

    def own(x: Any, padding: int) -> Array:
        padded = jnp.pad(x, ((0, rows * devices - x.shape[0]), (0, 0)), constant_values=padding)
        return jax.lax.dynamic_slice_in_dim(padded, device * rows, rows)

    return layout._replace(
        tokens=own(layout.tokens, 0),
        context=own(layout.context, -1),
        text=own(layout.text, -1),
        position=own(layout.position, 0),
        ends=own(layout.ends, 0),
    )


def causal(text: Array) -> Array:
    """The mask (R, T, T) of rows whose places belong to the texts (R, T): each sees its text up to itself."""
    length = text.shape[1]
    return (text[:, :, None] == text[:, None, :]) & jnp.tri(length, dtype=bool)


class CLIP(nn.Module):
    """Both towers and the temperature."""

    config: CLIPConfig
    dtype: Any = jnp.float32
    remat: str = "matmuls"

    def setup(self) -> None:
        self.vision = VisionTower(self.config, self.dtype, self.remat)
        self.text = TextTower(self.config, self.dtype, self.remat)
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(np.log(1 / 0.07)), ())

    def __call__(self, images: Array, layout: TextLayout) -> tuple[Array, Array]:
        """Plain features: images (B, H, W, 3), normalised -> (B, E); texts -> (C, E)."""
        return self.vision(images).features, self.text(layout)


def normalize(features: Array) -> Array:
    """Rows of unit Euclidean length, in float32."""
    features = features.astype(jnp.float32)
    return features / jnp.linalg.norm(features, axis=-1, keepdims=True)


def param_shapes(config: CLIPConfig) -> Any:
    """The tree of jax.ShapeDtypeStruct that CLIP(config) expects, without computing anything."""
    layout = TextLayout(
        *(np.zeros(shape, np.int32) for shape in (*[(1,)] * 2, *[(1, 1)] * 5, (1,)))
    )
    images = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
    return jax.eval_shape(
        lambda key, x: CLIP(config).init(key, x, layout)["params"], jax.random.key(0), images
    )
