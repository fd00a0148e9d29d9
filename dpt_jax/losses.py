"""The training losses of the five methods (table "Losses" of docs/method.md).

Every loss is a mean over rows that are spread over devices and over parts of a
batch, so it is computed as a sum here divided by a count of everywhere: the
result does not depend on how many devices or parts there are, nor on how
unevenly the rows that count fall on them.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dpt_jax.methods import PromptConfig
from dpt_jax.model import Outputs

Array = jax.Array
DUAL_WEIGHT_UNDER_GUIDANCE = 0.1


class Counts(NamedTuple):
    """What the losses are means over: images, and class prompts made for the true class
    (scalars).
    """

    images: Any
    class_prompts: Any


def cross_entropy(logits: Array, labels: Array) -> Array:
    """-log softmax(logits)[label] along the last axis: (..., C), (...) -> (...), float32."""
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0]


def count(indices: Array | None, labels: Array, rows: Array, layers: int) -> Counts:
    """The counts of some rows, which do not depend on the prompts.

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
    """What these rows add to the loss, a scalar.

    labels, rows: as for `count`. counts: those of all rows there are, on all
    devices. guided: whether the epoch is before the end of guidance. alpha:
    weight of the auxiliary loss.
    """

    def mean(logits: Array) -> Array:
        return (cross_entropy(logits, labels) * rows).sum() / jnp.maximum(counts.images, 1)

    if not (config.text_length and (config.visual_length or config.top_k)):
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
    return result


def _true_class(indices: Array, labels: Array, rows: Array) -> Array:
    """(B, K) float, 1 where a class prompt is made for the true class of a row that counts."""
    return ((indices == labels[:, None]) & (rows[:, None] > 0)).astype(jnp.float32)
