"""The training losses of the five methods (table "Losses" of the method's specification).

Every loss is kept as a sum and a count over the rows of one device, so that
the mean over the whole batch is a global sum over a global count, however many
devices there are and however unevenly the rows that count fall on them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dpt_jax.model import Outputs, PromptConfig

Array = jax.Array
DUAL_WEIGHT_UNDER_GUIDANCE = 0.1


class Term(NamedTuple):
    """weight · total / rows is this term's share of the loss, all scalars."""

    weight: Array | float
    total: Array
    rows: Array


def cross_entropy(logits: Array, labels: Array) -> Array:
    """-log softmax(logits)[label] along the last axis: (..., C), (...) -> (...), float32."""
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0]


def loss_terms(
    config: PromptConfig, outputs: Outputs, labels: Array, rows: Array, guided: Array | bool, alpha: float
) -> dict[str, Term]:
    """The terms of the loss, by name.

    labels: (B,). rows: (B,) float, 0 for padding rows, else 1. guided: whether
    the epoch is before the end of guidance. alpha: weight of the auxiliary loss.
    """
    count = rows.sum()

    def mean_over_rows(weight: Array | float, logits: Array) -> Term:
        return Term(weight, (cross_entropy(logits, labels) * rows).sum(), count)

    if not (config.text_length and (config.visual_length or config.top_k)):
        terms = {"dual": mean_over_rows(1.0, outputs.logits)}
    else:
        early = jnp.asarray(guided, jnp.float32)
        terms = {
            "text": mean_over_rows(early, outputs.text_logits),
            "image": mean_over_rows(early, outputs.image_logits),
            "dual": mean_over_rows(jnp.where(guided, DUAL_WEIGHT_UNDER_GUIDANCE, 1.0), outputs.logits),
        }
    if outputs.auxiliary_logits is not None and outputs.indices is not None:
        # (B, layers, K): the class prompts made for the true class.
        layers = outputs.auxiliary_logits.shape[1]
        true_class = (outputs.indices == labels[:, None]) & (rows[:, None] > 0)
        hits = jnp.repeat(true_class[:, None], layers, axis=1).astype(jnp.float32)
        wanted = jnp.broadcast_to(labels[:, None, None], hits.shape)
        total = (cross_entropy(outputs.auxiliary_logits, wanted) * hits).sum()
        terms["auxiliary"] = Term(alpha, total, hits.sum())
    return terms
