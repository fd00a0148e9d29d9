"""The losses against the published formulas."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as tries
from hypothesis import strategies as st

from dpt_jax.model import Outputs, ZeroShot
from dpt_jax.prompts.config import Consistency, PromptConfig
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
    outputs = Outputs(
        logits,
        text_logits,
        image_logits,
        features=features,
        learned_texts=None,
        zero_shot=ZeroShot(frozen, zero_shot, indices, None),
        auxiliary_logits=generator.standard_normal((rows, 2, 3, 5), dtype=np.float32),
        target_logits=target_logits,
    )
    return outputs, generator.integers(0, 5, rows)


def total(outputs, labels, rows, guided, kind):
    counts = count(outputs.zero_shot.indices, labels, rows)
    return share(outputs, Rows(labels, rows, *counts, guided), kind)


def share(outputs, rows, kind):
    config = dataclasses.replace(DPT, consistency=Consistency(25.0, kind, 10.0, 3.0))
    outputs = outputs._replace(learned_texts=TEXTS, target_texts=TARGETS)
    terms = losses(config, 0.3, True).values()
    return float(sum(term(outputs, rows) for term in terms))


def consistency(outputs, kind):
    texts = {"l1": np.abs(TEXTS - TARGETS).mean(), "cosine": 1 - (TEXTS * TARGETS).sum(-1).mean()}
    images = np.abs(outputs.features - outputs.zero_shot.features).mean()
    q, p = (jax.nn.softmax(x, axis=-1) for x in (outputs.target_logits, outputs.logits))
    return float(25 * texts[kind] + 10 * images + 3 * (q * (np.log(q) - np.log(p))).sum() / q.size)


def cross_entropy(logits, labels):
    rows = zip(logits, labels, strict=True)
    return np.mean([np.log(np.exp(row - row[label]).sum()) for row, label in rows])


@tries(deadline=None, max_examples=20)
@given(
    st.integers(0, 1000), st.sampled_from((1, 4)), st.booleans(), st.sampled_from(("l1", "cosine"))
)
def test_loss_is_the_published_formula_whatever_the_padding(seed, rows, guided, kind):
    outputs, labels = outputs_of(seed, rows)
    expected = cross_entropy(outputs.logits, labels) * (0.1 if guided else 1)
    if guided:
        expected += cross_entropy(outputs.text_logits, labels)
        expected += cross_entropy(outputs.image_logits, labels)
    qualified = [
        (outputs.auxiliary_logits[b, layer, k], labels[b])
        for b in range(rows)
        for layer in range(2)
        for k in range(3)
        if outputs.zero_shot.indices[b, k] == labels[b]
    ]
    if qualified:
        expected += 0.3 * cross_entropy(*zip(*qualified, strict=True))
    expected += consistency(outputs, kind)
    assert total(outputs, labels, jnp.ones(rows), guided, kind) == pytest.approx(expected, rel=1e-4)

    other, other_labels = outputs_of(seed + 1, 4)
    padded = jax.tree.map(lambda *x: np.concatenate(x), outputs, other)
    weight = jnp.concatenate([jnp.ones(rows), jnp.zeros(4)])
    every = np.concatenate([labels, other_labels])
    assert total(padded, every, weight, guided, kind) == pytest.approx(expected, rel=1e-4)

    # In two parts that share global counts, as with gradient accumulation and several devices.
    counts = count(padded.zero_shot.indices, every, weight)
    shares = []
    for part in (slice(None, rows - 1), slice(rows - 1, None)):
        own = jax.tree.map(lambda x, part=part: x[part], padded)
        shares.append(share(own, Rows(every[part], weight[part], *counts, guided), kind))
    assert sum(shares) == pytest.approx(expected, rel=1e-4)
