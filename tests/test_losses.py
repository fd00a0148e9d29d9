"""The losses of batches in parts and with padding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as tries
from hypothesis import strategies as st

from dpt_jax.model import Outputs, ZeroShot
from dpt_jax.prompts import Consistency, PromptConfig
from dpt_jax.training.losses import Rows, count, losses

pytestmark = pytest.mark.compiles


DPT = PromptConfig(classes=5, text_length=2, visual_length=2, top_k=3, first_layer=2)
# Features of the learned texts and of those that they are regularised towards.
TEXTS, TARGETS = (x / np.linalg.norm(x, axis=-1, keepdims=True)
                  for x in np.random.default_rng(0).standard_normal((2, 5, 8)))  # fmt: skip


def outputs_of(seed, rows):
    """Random outputs for `rows` images of 5 classes, 2 CAVPT layers and 3 top-k classes."""
    generator = np.random.default_rng(seed)
    logits, zero_shot, text_logits, image_logits, target_logits = (
        generator.standard_normal((rows, 5), dtype=np.float32) for _ in range(5)
    )
    features, frozen = (generator.standard_normal((rows, 8), dtype=np.float32) for _ in range(2))
    indices = np.stack([generator.permutation(5)[:3] for _ in range(rows)])
    auxiliary = generator.standard_normal((rows, 2, 3, 5), dtype=np.float32)
    outputs = Outputs(logits, text_logits, image_logits, features=features, learned_texts=None,
                      zero_shot=ZeroShot(frozen, zero_shot, indices, None),
                      auxiliary_logits=auxiliary, target_logits=target_logits)  # fmt: skip
    return outputs, generator.integers(0, 5, rows)


def total(outputs, rows, kind):
    config = dataclasses.replace(DPT, consistency=Consistency(25.0, kind, 10.0, 3.0))
    outputs = outputs._replace(learned_texts=TEXTS, target_texts=TARGETS)
    terms = losses(config, 0.3, True).values()
    return float(sum(term(outputs, rows) for term in terms))


@tries(deadline=None, max_examples=20)
@given(
    st.integers(0, 1000), st.sampled_from((1, 4)), st.booleans(), st.sampled_from(("l1", "cosine"))
)
def test_padding_and_parts_do_not_change_the_loss(seed, rows, guided, kind):
    """Padded, in two parts that share global counts: gradient accumulation and several devices.

    That it is the published formula is in test_parity.py and test_family_parity.py.
    """
    outputs, labels = outputs_of(seed, rows)
    counts = count(outputs.zero_shot.indices, labels, jnp.ones(rows))
    expected = total(outputs, Rows(labels, jnp.ones(rows), *counts, guided), kind)
    assert np.isfinite(expected)  # even if no image has its label among the likeliest classes

    other, other_labels = outputs_of(seed + 1, 4)
    padded = jax.tree.map(lambda *x: np.concatenate(x), outputs, other)
    weight = jnp.concatenate([jnp.ones(rows), jnp.zeros(4)])
    every = np.concatenate([labels, other_labels])
    counts = count(padded.zero_shot.indices, every, weight)
    shares = []
    for part in (slice(None, rows - 1), slice(rows - 1, None)):
        own = jax.tree.map(lambda x, part=part: x[part], padded)
        shares.append(total(own, Rows(every[part], weight[part], *counts, guided), kind))
    assert sum(shares) == pytest.approx(expected, rel=1e-4)
