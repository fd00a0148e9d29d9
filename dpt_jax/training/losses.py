"""The training losses of all methods, by name (table "Losses" of docs/method.md).

Every loss is a mean over images that are spread over devices and microbatches. Each microbatch
computes its sum divided by the global count, so the result does not depend on how the images are
spread.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dpt_jax.model import Outputs
from dpt_jax.prompts.config import COSINE, PromptConfig

Array = jax.Array
DUAL_WEIGHT_UNDER_GUIDANCE = 0.1


class Counts(NamedTuple):
    """The counts that the losses divide by (scalars)."""

    images: Array
    class_prompts: Array  # those of the true class in a layer


class Rows(NamedTuple):
    """The images of one microbatch."""

    labels: Array  # (B,) int
    weights: Array  # (B,) float, 0 for padding, else 1


# (outputs, rows, counts of all rows on all devices, () bool: whether guidance is on) -> scalar
Loss = Callable[[Outputs, Rows, Counts, Array | bool], Array]


def losses(config: PromptConfig, alpha: float, guidance: bool) -> dict[str, Loss]:
    """Return the terms of a method's loss, weighted; the loss is their sum.

    Args:
      alpha: weight of the auxiliary loss of CAVPT.
      guidance: whether any epoch has guidance. Otherwise its terms are omitted.
    """
    # Only a method that learns in both towers has something to guide.
    guidance = guidance and config.learns_texts and config.learns_images
    weights = config.consistency

    def logits(outputs: Outputs, rows: Rows, counts: Counts, guided: Array | bool) -> Array:
        weight = jnp.where(guided, DUAL_WEIGHT_UNDER_GUIDANCE, 1.0) if guidance else 1.0
        return weight * mean(cross_entropy(outputs.logits, rows.labels), rows, counts)

    def text_logits(outputs: Outputs, rows: Rows, counts: Counts, guided: Array | bool) -> Array:
        loss = mean(cross_entropy(outputs.text_logits, rows.labels), rows, counts)
        return jnp.asarray(guided, jnp.float32) * loss

    def image_logits(outputs: Outputs, rows: Rows, counts: Counts, guided: Array | bool) -> Array:
        loss = mean(cross_entropy(outputs.image_logits, rows.labels), rows, counts)
        return jnp.asarray(guided, jnp.float32) * loss

    def auxiliary(outputs: Outputs, rows: Rows, counts: Counts, _: Array | bool) -> Array:
        hits = true_class(outputs.zero_shot.indices, rows)[:, None]  # the same for every layer
        shape = outputs.auxiliary_logits.shape[:-1]  # (B, layers, K)
        labels = jnp.broadcast_to(rows.labels[:, None, None], shape)
        total = (cross_entropy(outputs.auxiliary_logits, labels) * hits).sum()
        return alpha * total / jnp.maximum(shape[1] * counts.class_prompts, 1)

    def text_consistency(outputs: Outputs, rows: Rows, counts: Counts, _: Array | bool) -> Array:
        # Unless the context depends on the image, all rows have the same value, and each adds its
        # share.
        each = text_distance(weights.text_distance, outputs.learned_texts, outputs.target_texts)
        return weights.text * mean(each, rows, counts)

    def image_consistency(outputs: Outputs, rows: Rows, counts: Counts, _: Array | bool) -> Array:
        each = jnp.abs(outputs.features - outputs.zero_shot.features).mean(-1)
        return weights.image * mean(each, rows, counts)

    def logit_consistency(outputs: Outputs, rows: Rows, counts: Counts, _: Array | bool) -> Array:
        each = divergence(outputs.target_logits, outputs.logits)
        return weights.logits * mean(each, rows, counts)

    terms: dict[str, Loss] = {"text_logits": text_logits, "image_logits": image_logits}
    terms = terms if guidance else {}
    terms["logits"] = logits
    if config.top_k:
        terms["auxiliary"] = auxiliary
    if weights.text:
        terms["text_consistency"] = text_consistency
    if weights.image:
        terms["image_consistency"] = image_consistency
    if weights.logits:
        terms["logit_consistency"] = logit_consistency
    return terms


def count(indices: Array | None, rows: Rows) -> Counts:
    """Return the counts of some rows, which do not depend on the prompts.

    indices: (B, K), the classes of CAVPT, or None.
    """
    hits = jnp.zeros(()) if indices is None else true_class(indices, rows).sum()
    return Counts(rows.weights.sum(), hits)


def mean(each: Array, rows: Rows, counts: Counts) -> Array:
    """Return these rows' contribution to a mean over all rows.  each: (B,), or () for all."""
    return (each * rows.weights).sum() / jnp.maximum(counts.images, 1)


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Return -log softmax(logits)[label] of the last axis: (..., C), (...) -> (...), float32."""
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0]


def divergence(target: Array, logits: Array) -> Array:
    """Return Σ_c q (log q − log p) / C, (…, C) -> (…), q = softmax(target), p = softmax(logits).

    The division by the number of classes is PromptSRC's, as published.
    """
    log_q, log_p = jax.nn.log_softmax(target), jax.nn.log_softmax(logits)
    return (jnp.exp(log_q) * (log_q - log_p)).mean(-1)


def text_distance(kind: str, learned: Array, target: Array) -> Array:
    """Return the distance of t̂ from t̄: 1 − mean cosine, or the mean of |t̂ − t̄|.

    Args:
      kind: COSINE or L1.
      learned: t̂ (C, E), or (B, C, E) if the context depends on the image.
      target: t̄ (C, E).

    Returns:
      A scalar, or (B,).
    """
    if kind == COSINE:
        return 1 - (learned * target).sum(-1).mean(-1)
    return jnp.abs(learned - target).mean((-2, -1))


def true_class(indices: Array, rows: Rows) -> Array:
    """Return (B, K) float, 1 for class prompts of the true class, 0 in padding."""
    return ((indices == rows.labels[:, None]) & (rows.weights[:, None] > 0)).astype(jnp.float32)
