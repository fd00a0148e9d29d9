"""The floating-point operations that a step's mathematics needs, counted from the shapes.

Only matrix products count, with two operations for a multiplication and its addition. Work that the
result does not need is left out: padding, masked pairs, recomputed activations, gradients of frozen
weights. Symbols: D width, M width of the MLP, T tokens, Q tokens whose output is wanted.
"""

import numpy as np

from dpt_jax.clip.config import TransformerConfig
from dpt_jax.clip.text import TextLayout
from dpt_jax.model import PromptedCLIP
from dpt_jax.prompts.cavpt import ATTENTION_WIDTH, GLOBAL_TOKENS


def count(model: PromptedCLIP, layout: TextLayout, images: int, train: bool) -> float:
    """Return the operations of one training step, or of evaluating with the text features given."""
    prompted = bool(model.prompts.visual_length or model.prompts.top_k)
    total = _embed(model, images) + _vision(model, images, prompted=False)
    if prompted:
        total += _vision(model, images, prompted=True)
        if train:
            total += _vision(model, images, prompted=True, backward=True)
    if model.prompts.top_k:
        total += _cavpt(model, images) * (3 if train else 1)
    if train and model.prompts.text_length:
        total += text(model, layout) + text(model, layout, backward=True)
    heads = 2.0 * images * layout.order.shape[-1] * model.clip.embed_dim
    return total + heads * (6 if train else 2)


def text(model: PromptedCLIP, layout: TextLayout, backward: bool = False) -> float:
    """Return those of the text tower, once for all classes."""
    tower, layers = model.clip.text, model.clip.text.layers
    prefix, lengths = (
        len(layout.prefix_tokens),
        np.unique(layout.text[layout.text >= 0], return_counts=True)[1],
    )
    own, texts = int(lengths.sum()), len(lengths)
    pairs = prefix * (prefix + 1) / 2 + float(
        (lengths * (lengths + 1) / 2 + lengths * prefix).sum()
    )
    last_pairs = float((lengths + prefix).sum())
    whole = _block(tower, prefix + own, prefix + own, pairs, backward)
    last = _block(tower, prefix + own, texts, last_pairs, backward)
    # Only the context is learned: no gradient goes into the first layer's other tokens.
    unneeded = 6.0 * tower.width**2 * own if backward and (layout.context < 0).all() else 0.0
    return whole * (layers - 1) + last + 2.0 * texts * tower.width * model.clip.embed_dim - unneeded


def _vision(model: PromptedCLIP, images: int, prompted: bool, backward: bool = False) -> float:
    """Return those of the image tower's blocks, without CAVPT's own attention."""
    tower, prompts = model.clip.vision, model.prompts
    tokens = model.clip.grid**2 + 1
    total = 2.0 * images * tower.width * model.clip.embed_dim
    for layer in range(tower.layers):
        cavpt = prompts.top_k and layer >= model.visual_layers
        seen = (prompts.top_k if cavpt else prompts.visual_length) if prompted else 0
        asked = 1 if layer == tower.layers - 1 else tokens
        pairs = images * asked * (tokens + seen)
        total += _block(tower, images * tokens, images * asked, pairs, backward)
        # Keys and values of a prompt: once for all images, or of every image's own.
        total += 4.0 * tower.width**2 * seen * (images if cavpt else 1)
        if backward and layer == 0:
            total -= 6.0 * tower.width**2 * images * tokens  # no gradient goes into the images
    return total


def _block(
    tower: TransformerConfig, tokens: int, asked: int, pairs: float, backward: bool
) -> float:
    """Return those of one block on `tokens` tokens, whose `asked` queries meet `pairs` keys in all.

    The backward pass needs the same products, transposed, and four instead of two in attention.
    """
    keys_values = 4.0 * tower.width**2 * tokens
    rest = (4.0 * tower.width**2 + 4.0 * tower.width * tower.mlp_width) * asked
    return keys_values + rest + (8.0 if backward else 4.0) * tower.width * pairs


def _cavpt(model: PromptedCLIP, images: int) -> float:
    """Return those of the class-aware prompts' cross-attention, in all their layers."""
    width, k = model.clip.vision.width, model.prompts.top_k
    looked_at = model.clip.grid**2 + 1 + GLOBAL_TOKENS
    one = k * model.clip.embed_dim * width + (k + looked_at) * width * ATTENTION_WIDTH
    one += (
        k * looked_at * (ATTENTION_WIDTH + width) + k * width**2 + k * width * model.prompts.classes
    )
    return 2.0 * images * one * model.cavpt_layers


def _embed(model: PromptedCLIP, images: int) -> float:
    return (
        2.0 * images * model.clip.grid**2 * 3 * model.clip.patch_size**2 * model.clip.vision.width
    )
