"""The training losses of all methods (table "Losses" of docs/method.md).

Every loss is a mean over images that are spread over devices and over parts of
a batch. So each part computes its sum, divided by the count of all parts. The
result depends neither on the number of devices or parts, nor on how the images
that count are spread over them.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dpt_jax.methods import COSINE, Consistency, PromptConfig
from dpt_jax.model.outputs import Held, Outputs

Array = jax.Array
DUAL_WEIGHT_UNDER_GUIDANCE = 0.1


class Counts(NamedTuple):
    """What the losses are means over (scalars)."""

    images: Any
    class_prompts: Any  # those that were made for the true class


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Return -log softmax(logits)[label] of the last axis: (..., C), (...) -> (...), float32."""
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0]


def count(indices: Array | None, labels: Array, rows: Array, layers: int) -> Counts:
    """Return the counts of some rows, which do not depend on the prompts.

    indices: (B, K), the classes that CAVPT looks at, or None. labels: (B,).
    rows: (B,) float, 0 for padding rows, else 1. layers: how many have CAVPT.
    """
    if indices is None:
        return Counts(rows.sum(), jnp.zeros(()))
    return Counts(rows.sum(), layers * _true_class(indices, labels, rows).sum())


def loss(
    config: PromptConfig,
    outputs: Outputs,
    labels: Array,
    rows: Array,
    counts: Counts,
    guided: Array | bool,
    alpha: float,
) -> Array:
    """Return what these rows add to the loss, a scalar.

    labels, rows: as for `count`. counts: those of all rows there are, on all
    devices. guided: whether the epoch is before the end of guidance; False, if
    none is, leaves out what guidance alone needs. alpha: weight of the
    auxiliary loss.
    """

    def mean(logits: Array) -> Array:
        return (cross_entropy(logits, labels) * rows).sum() / jnp.maximum(counts.images, 1)

    if guided is False or not (config.text_length and config.sees_prompts):
        result = mean(outputs.logits)
    else:
        early = jnp.asarray(guided, jnp.float32)
        result = early * (mean(outputs.text_logits) + mean(outputs.image_logits))
        result += jnp.where(guided, DUAL_WEIGHT_UNDER_GUIDANCE, 1.0) * mean(outputs.logits)
    if outputs.auxiliary_logits is not None and outputs.indices is not None:
        hits = _true_class(outputs.indices, labels, rows)[
            :, None
        ]  # (B, 1, K), the same for every layer
        wanted = jnp.broadcast_to(labels[:, None, None], outputs.auxiliary_logits.shape[:-1])
        total = (cross_entropy(outputs.auxiliary_logits, wanted) * hits).sum()
        result += alpha * total / jnp.maximum(counts.class_prompts, 1)
    if config.held:
        result += consistency(config.consistency, outputs, rows, counts)
    return result


def consistency(weights: Consistency, outputs: Outputs, rows: Array, counts: Counts) -> Array:
    """Return what these rows add to the losses that hold what is prompted to plain CLIP.

    That of the texts is the same for all images unless the context depends on them: each row adds
    its share of it.
    """
    held, images = outputs.held, jnp.maximum(counts.images, 1)
    assert held is not None, "a model whose loss holds something needs Texts.held"
    result = jnp.zeros(())
    if weights.text:
        each = text_distance(weights.text_distance, held)
        result += weights.text * (each * rows).sum() / images
    if weights.image:
        each = jnp.abs(outputs.features - held.to_features).mean(-1)
        result += weights.image * (each * rows).sum() / images
    if weights.logits:
        each = divergence(held.to_logits, outputs.logits)
        result += weights.logits * (each * rows).sum() / images
    return result


def divergence(target: Array, logits: Array) -> Array:
    """Return Σ_c q (log q − log p) / C, (…, C) -> (…): q of the target, p of the logits.

    It is divided by the number of classes, as published.
    """
    log_q, log_p = jax.nn.log_softmax(target), jax.nn.log_softmax(logits)
    return (jnp.exp(log_q) * (log_q - log_p)).mean(-1)


def text_distance(kind: str, held: Held) -> Array:
    """Return how far t̂ is from t̄: 1 − mean cosine, or the mean over |t̂ − t̄|.

    It is a scalar, or (B,) where the context depends on the image.
    """
    if kind == COSINE:
        return 1 - (held.texts * held.to_texts).sum(-1).mean(-1)
    return jnp.abs(held.texts - held.to_texts).mean((-2, -1))


def _true_class(indices: Array, labels: Array, rows: Array) -> Array:
    """Return (B, K) float, 1 for a class prompt of the true class, in a row that counts."""
    return ((indices == labels[:, None]) & (rows[:, None] > 0)).astype(jnp.float32)
