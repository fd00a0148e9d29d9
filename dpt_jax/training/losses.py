"""The training losses of all methods, by name (table "Losses" of docs/method.md).

Every loss is a mean over images that are spread over devices and microbatches. Each microbatch
computes its sum divided by the global count, so the result does not depend on how the images are
spread.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dpt_jax.clip.blocks import Array
from dpt_jax.model import Outputs
from dpt_jax.prompts import COSINE, PromptConfig

DUAL_WEIGHT_UNDER_GUIDANCE = 0.1


class Rows(NamedTuple):
    """The images of one microbatch, and counts over all microbatches of all devices."""

    labels: Array  # (B,) int
    weights: Array  # (B,) float, 0 for padding, else 1
    images: Array  # (), their number
    class_prompts: Array  # (), the class prompts of true classes in a layer
    guided: Array | bool = False  # (), whether guidance is on


Loss = Callable[[Outputs, Rows], Array]  # to a scalar


def losses(config: PromptConfig, alpha: float, guidance: bool) -> dict[str, Loss]:
    """Return the terms of a method's loss, weighted; the loss is their sum.

    Args:
      config: the prompts, and the weights of the consistency losses.
      alpha: weight of the auxiliary loss of CAVPT.
      guidance: whether any epoch has guidance. Otherwise its terms are omitted.
    """

    def classify(logits: Array, rows: Rows, weight: Array | float = 1.0) -> Array:
        return weight * mean(cross_entropy(logits, rows.labels), rows)

    def weighted(weight: float, each: Callable[[Outputs], Array]) -> Loss:
        return lambda outputs, rows: weight * mean(each(outputs), rows)

    weights, terms = config.consistency, dict[str, Loss]()
    # Only a method that learns in both towers has something to guide.
    if guidance and config.learns_texts and config.learns_images:
        terms["text_logits"] = lambda o, rows: classify(o.text_logits, rows, rows.guided)
        terms["image_logits"] = lambda o, rows: classify(o.image_logits, rows, rows.guided)
        terms["logits"] = lambda o, rows: classify(
            o.logits, rows, jnp.where(rows.guided, DUAL_WEIGHT_UNDER_GUIDANCE, 1.0)
        )
    else:
        terms["logits"] = lambda o, rows: classify(o.logits, rows)
    if config.top_k:
        terms["auxiliary"] = lambda o, rows: auxiliary(o, rows, alpha)
    # Each row adds its share, also of a distance that is the same for all.
    if weights.text:
        terms["text_consistency"] = weighted(
            weights.text,
            lambda o: text_distance(weights.text_distance, o.learned_texts, o.target_texts),
        )
    if weights.image:
        terms["image_consistency"] = weighted(
            weights.image, lambda o: jnp.abs(o.features - o.zero_shot.features).mean(-1)
        )
    if weights.logits:
        terms["logit_consistency"] = weighted(
            weights.logits, lambda o: divergence(o.target_logits, o.logits)
        )
    return terms


def count(indices: Array | None, labels: Array, weights: Array) -> tuple[Array, Array]:
    """Return the numbers of images, and of class prompts of true classes in a layer.

    indices: (B, K), the classes of CAVPT, or None.
    """
    hits = jnp.zeros(()) if indices is None else true_class(indices, labels, weights).sum()
    return weights.sum(), hits


def mean(each: Array, rows: Rows) -> Array:
    """Return these rows' contribution to a mean over all rows.  each: (B,), or () for all."""
    return (each * rows.weights).sum() / jnp.maximum(rows.images, 1)


def auxiliary(outputs: Outputs, rows: Rows, alpha: float) -> Array:
    """Return these rows' contribution to α times the mean over class prompts of true classes."""
    # The same for every layer.
    hits = true_class(outputs.zero_shot.indices, rows.labels, rows.weights)[:, None]
    shape = outputs.auxiliary_logits.shape[:-1]  # (B, layers, K)
    labels = jnp.broadcast_to(rows.labels[:, None, None], shape)
    total = (cross_entropy(outputs.auxiliary_logits, labels) * hits).sum()
    return alpha * total / jnp.maximum(shape[1] * rows.class_prompts, 1)


def true_class(indices: Array, labels: Array, weights: Array) -> Array:
    """Return (B, K) float, 1 for class prompts of the true class, 0 in padding."""
    return ((indices == labels[:, None]) & (weights[:, None] > 0)).astype(jnp.float32)


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
