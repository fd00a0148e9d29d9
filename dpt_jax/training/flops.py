"""Floating-point operations of a model, counted from the shapes.

Only matrix products count, with two operations for a multiplication and its addition. Work that the
result does not need is left out: padding, masked pairs, recomputed activations, gradients of frozen
weights. Symbols: D width, M width of the MLP, T tokens, Q tokens whose output is computed.
"""

import numpy as np

from dpt_jax.clip.config import TransformerConfig
from dpt_jax.clip.packing import PackedTexts
from dpt_jax.model import PromptedCLIP, visual_depth, visual_layers
from dpt_jax.prompts.cavpt import ATTENTION_WIDTH, GLOBAL_TOKENS
from dpt_jax.prompts.config import LORA
from dpt_jax.prompts.meta_net import REDUCTION
from dpt_jax.prompts.weights import layers_of, towers_of

# Published peak rates of dense bfloat16 products, by the start of JAX's device_kind, longer names
# first. Per core if JAX counts two devices per chip (TPU v2, v3 and 7x).
PEAKS = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4 lite": 138e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
    "TPU7x": 1153.5e12,
    "NVIDIA A10G": 70e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L4": 121e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


def peak(device_kind: str) -> float | None:
    """Return the peak rate of a device in bfloat16 operations per second, None if unknown."""
    return next((rate for name, rate in PEAKS.items() if device_kind.startswith(name)), None)


def step(model: PromptedCLIP, layout: PackedTexts, images: int, guided: bool = True) -> float:
    """Return the operations of one training step.

    layout: the learned texts'. guided: whether the loss compares each tower with the other's plain
    one (`loss.guidance_epochs`).
    """
    prompts = model.config
    total = _embed(model, images)
    if _step_needs_plain(model, guided):
        total += _vision(model, images, prompted=False)
    if prompts.learns_images:
        total += _vision(model, images, prompted=True)
        total += _vision(model, images, prompted=True, backward=True)
    if prompts.learns_texts:
        sets_of_texts = images if prompts.conditioned else 1
        total += sets_of_texts * (text(model, layout) + text(model, layout, backward=True))
    own = _made_of_others(model, images) + _cavpt(model, images, auxiliary=True)
    own += _low_rank(model, layout, images)
    return total + 3 * own + 6 * _cosines(model, layout, images)


def evaluation(model: PromptedCLIP, layout: PackedTexts, images: int) -> float:
    """Return the operations of evaluating images in one program, with known text features.

    If the context depends on the image, its text features are not known, and are counted.
    """
    shared = _embed(model, images) if model.config.learns_images else 0.0
    return plain(model, images) + answer(model, layout, images) - shared


def plain(model: PromptedCLIP, images: int) -> float:
    """Return the operations of frozen CLIP's image features."""
    return _embed(model, images) + _vision(model, images, prompted=False)


def answer(model: PromptedCLIP, layout: PackedTexts, images: int) -> float:
    """Return the operations of an evaluation with known text and frozen image features."""
    total = 2 * _cosines(model, layout, images)
    if model.config.learns_images:
        total += _embed(model, images) + _vision(model, images, prompted=True)
    if model.config.conditioned:
        total += images * text(model, layout)
    return total + _made_of_others(model, images) + _cavpt(model, images, auxiliary=False)


def text(model: PromptedCLIP, layout: PackedTexts, backward: bool = False) -> float:
    """Return the operations of the text tower, once for all classes."""
    tower, layers = model.clip_config.text, model.clip_config.text.layers
    prefix, lengths = (
        len(layout.prefix_tokens),
        np.unique(layout.segment_ids[layout.segment_ids >= 0], return_counts=True)[1],
    )
    own, texts = int(lengths.sum()), len(lengths)
    pairs = prefix * (prefix + 1) / 2 + float(
        (lengths * (lengths + 1) / 2 + lengths * prefix).sum()
    )
    last_pairs = float((lengths + prefix).sum())
    whole = _block(tower, prefix + own, prefix + own, pairs, backward)
    last = _block(tower, prefix + own, texts, last_pairs, backward)
    # No gradient goes into the first layer's own tokens if they have no context, and none into
    # layers before those with learned weights.
    unneeded, first = 0.0, 0
    if backward and (layout.context < 0).all():
        weights, has_context = model.config.weights, model.config.text_length > 0
        unneeded = 6.0 * tower.width**2 * (own if has_context else prefix + own)
        if not has_context:
            first = layers_of(weights.text, tower).start
        if weights.text and weights.kind != LORA:
            unneeded = 0.0
    return (
        whole * (layers - 1 - first)
        + last
        + 2.0 * texts * tower.width * model.clip_config.embed_dim
        - unneeded
    )


def _step_needs_plain(model: PromptedCLIP, guided: bool) -> bool:
    """Return whether a step's result depends on frozen CLIP's image features."""
    prompts = model.config
    compared = guided and prompts.learns_texts and prompts.learns_images
    held = prompts.consistency.image or prompts.consistency.logits
    return bool(
        not prompts.learns_images or prompts.conditioned or prompts.top_k or compared or held
    )


def _vision(model: PromptedCLIP, images: int, prompted: bool, backward: bool = False) -> float:
    """Return the operations of the image tower's blocks, without CAVPT's own attention."""
    tower, prompts = model.clip_config.vision, model.config
    patches = model.clip_config.grid**2 + 1
    # The visual tokens of layer J are ordinary ones from there on, unless J is the last layer.
    joining = prompted and 0 < prompts.visual_depth < tower.layers and prompts.visual_length > 0
    total = 2.0 * images * tower.width * model.clip_config.embed_dim
    weights, first = prompts.weights, 0
    if backward and weights.vision and not (prompts.visual_length or prompts.top_k):
        first = layers_of(weights.vision, tower).start
    for layer in range(first, tower.layers):
        joined = joining and layer >= prompts.visual_depth - 1
        tokens = patches + (prompts.visual_length if joined else 0)
        cavpt = prompted and prompts.top_k and layer >= visual_layers(model.clip_config, prompts)
        has_own = prompted and not cavpt and not joined
        seen = prompts.top_k if cavpt else prompts.visual_length if has_own else 0
        asked = 1 if layer == tower.layers - 1 else tokens
        pairs = images * asked * (tokens + seen)
        total += _block(tower, images * tokens, images * asked, pairs, backward)
        # Keys and values of a prompt: once for all images, or for each image.
        total += 4.0 * tower.width**2 * seen * (images if cavpt else 1)
        if backward and layer == first and (weights.kind == LORA or not weights.vision):
            total -= 6.0 * tower.width**2 * images * patches  # no gradient goes into the images
    return total


def _block(
    tower: TransformerConfig, tokens: int, asked: int, pairs: float, backward: bool
) -> float:
    """Return the operations of one block: `tokens` tokens, `asked` queries, `pairs` of query and
    key.

    The backward pass needs the same products, transposed, and four instead of two in attention.
    """
    keys_values = 4.0 * tower.width**2 * tokens
    rest = (4.0 * tower.width**2 + 4.0 * tower.width * tower.mlp_width) * asked
    return keys_values + rest + (8.0 if backward else 4.0) * tower.width * pairs


def _cavpt(model: PromptedCLIP, images: int, auxiliary: bool) -> float:
    """Return the operations of the class-aware prompts' cross-attention, in all their layers.

    auxiliary: whether their auxiliary logits are computed too.
    """
    width, k = model.clip_config.vision.width, model.config.top_k
    looked_at = model.clip_config.grid**2 + 1 + GLOBAL_TOKENS
    one = k * model.clip_config.embed_dim * width + (k + looked_at) * width * ATTENTION_WIDTH
    one += k * looked_at * (ATTENTION_WIDTH + width) + k * width**2
    one += k * width * model.config.classes if auxiliary else 0
    return 2.0 * images * one * model.cavpt_layers if k else 0.0


def _made_of_others(model: PromptedCLIP, images: int) -> float:
    """Return the operations of MaPLe's coupling and of CoCoOp's meta-net."""
    prompts, clip = model.config, model.clip_config
    total = 0.0
    if prompts.coupled:
        total += (
            2.0
            * visual_depth(model.clip_config, model.config)
            * prompts.visual_length
            * clip.text.width
            * clip.vision.width
        )
    if prompts.conditioned:
        hidden = clip.embed_dim // REDUCTION
        total += 2.0 * images * hidden * (clip.embed_dim + clip.text.width)
    return total


def _low_rank(model: PromptedCLIP, layout: PackedTexts, images: int) -> float:
    """Return the operations of low-rank changes in a training step."""
    weights, clip = model.config.weights, model.clip_config
    if weights.kind != LORA:
        return 0.0
    texts = len(layout.prefix_tokens) + (layout.segment_ids >= 0).sum()
    tokens = {"vision": images * (clip.grid**2 + 1), "text": float(texts)}
    return sum(
        4.0 * weights.rank * tower.width * len(weights.matrices) * len(layers) * tokens[name]
        for name, tower, layers in towers_of(weights, clip)
    )


def _cosines(model: PromptedCLIP, layout: PackedTexts, images: int) -> float:
    """Return the operations of one array of logits."""
    return 2.0 * images * layout.eot_index.shape[-1] * model.clip_config.embed_dim


def _embed(model: PromptedCLIP, images: int) -> float:
    clip = model.clip_config
    return 2.0 * images * clip.grid**2 * 3 * clip.patch_size**2 * clip.vision.width
