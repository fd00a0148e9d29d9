"""What the model makes of texts and images, which losses, evaluation and pictures read.

Symbols as in the paper: B images, C classes, E joint embedding, s the temperature.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dpt_jax.clip.text import TextLayout

Array = jax.Array


class Texts(NamedTuple):
    """Text features (C, E) of the classes."""

    frozen: Array  # Z, normalised
    # t, not normalised; the frozen features if there is no text prompt, None where they depend on
    # the image
    learned: Array | None
    held: Array | None = None  # t̄, normalised, where a loss holds the learned ones to it
    layout: TextLayout | None = None  # of the learned ones, where they depend on the image


class Held(NamedTuple):
    """What losses hold what is prompted to, and the texts that they hold, float32."""

    texts: Array  # (C, E), t̂; (B, C, E) where the context depends on the image
    to_texts: Array  # (C, E), t̄
    to_features: Array  # (B, E), z
    to_logits: Array  # (B, C), s z t̄ᵀ


class Plain(NamedTuple):
    """What plain CLIP sees in B images.  Nothing here depends on the prompts."""

    features: Array  # (B, E), z, float32
    logits: Array  # (B, C), s z Zᵀ
    indices: Array | None  # (B, K), the classes CAVPT looks at, best first
    # (B, heads, 1 + patches), of the class token in the last block; for pictures only
    attention: Array | None


class Outputs(NamedTuple):
    """What losses, evaluation and pictures read, float32.  Unused ones cost nothing under jit."""

    logits: Array  # (B, C), the method's prediction
    zero_shot_logits: Array  # (B, C), s z Zᵀ
    text_logits: Array  # (B, C), s z t̂ᵀ
    image_logits: Array  # (B, C), s f̂ Zᵀ
    auxiliary_logits: Array | None  # (B, CAVPT layers, K, C)
    indices: Array | None  # (B, K), the classes CAVPT looks at, best first
    features: Array  # (B, E), f̂
    # (B, heads, 1 + patches + M), as Plain's, with the prompts after the patches
    attention: Array | None
    # (B, CAVPT layers, K, 1 + patches + G), what each class prompt is made of
    class_attention: Array | None
    held: Held | None = None  # None without Texts.held


def cosines(images: Array, texts: Array) -> Array:
    """Return the products (B, C) of images (B, E) and texts (C, E), or (B, C, E) of each image."""
    return images @ texts.T if texts.ndim == 2 else jnp.einsum("be,bce->bc", images, texts)
