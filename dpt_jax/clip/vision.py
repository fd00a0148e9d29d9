"""The image tower, a ViT that accepts prompt tokens at every layer.

Shapes: B images, T tokens, M memory tokens, D width, E joint embedding.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dpt_jax.clip.blocks import Array, LayerNorm, Transformer
from dpt_jax.clip.config import CLIPConfig
from dpt_jax.clip.rows import spread


class LayerPrompts(NamedTuple):
    """Prompt tokens for the next `layers` blocks of the vision tower.

    `make(inputs, x)` returns (memory (B or 1, M, D) or None, named outputs) for
    the tokens x (B, T, D) entering a block; `inputs` is that block's slice of
    `per_layer`, a tree of arrays with a leading axis of `layers`. `joining`
    (M, D) are tokens that stand behind the others from the first of these
    blocks on, and are ordinary tokens to the last layer of the tower.
    """

    layers: int
    make: Callable[[Any, Array], tuple[Array | None, Any]]
    per_layer: Any = None
    joining: Array | None = None


def no_memory(_: Any, x: Array) -> tuple[None, None]:
    """Return what LayerPrompts.make does where a block has no prompt of its own."""
    return None, None


class Seen(NamedTuple):
    """What the vision tower makes of B images.  Unused entries cost nothing under jit."""

    features: Array  # (B, E), float32
    # (B, heads, 1 + patches + M), float32: what the class token of the last block looks at.
    attention: Array
    made: list[Any]  # per element of the prompts, the named outputs of its `make`


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
            x, attention, _ = self._run(x, start, LayerPrompts(layers - start, no_memory))
        features = self.ln_post(x[:, 0]) @ self.projection.astype(self.dtype)
        return Seen(features.astype(jnp.float32), attention, made)

    def _run(self, x: Array, start: int, prompt: LayerPrompts) -> tuple[Array, Any, Any]:
        """Run tokens x through the blocks from `start` on that this prompt is for.

        Return (tokens, the class token's attention where the last block is
        among them, what the prompt made).
        """

        def step(block: Callable[..., Array], x: Array, inputs: Any) -> tuple[Array, Any]:
            memory, output = prompt.make(inputs, x)
            return block(x, memory), output

        ends = start + prompt.layers == self.config.vision.layers
        scanned = prompt.layers - ends
        attention = output = None
        if prompt.joining is not None:
            joining = prompt.joining.astype(x.dtype)
            x = jnp.concatenate([x, spread(joining, (x.shape[0], *joining.shape))], axis=1)
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
