"""DPT's relatives against arrays computed by the published code of each (float32, CPU)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpt_jax.clip.model import normalize
from dpt_jax.clip.pretrained import load_clip
from dpt_jax.config import method_config, templates
from dpt_jax.model import init_prompts
from dpt_jax.training.losses import cross_entropy, divergence, text_distance
from dpt_jax.training.optimizer import Schedule, average_epochs, epoch_weights
from tests.helpers.golden import Golden, errors_in_norm, relative_error, worst
from tests.helpers.models import apply, prompt_shapes
from tests.helpers.published_cases import Case, prompts_of

pytestmark = pytest.mark.compiles

LOGITS = 1e-5  # of the largest entry
AFTER_TRAINING = 3e-5  # the same, of eight steps later
GRADIENTS = 1e-4  # of the norm
CASES = ("cocoop", "ivlp", "kgcoop", "maple", "promptsrc_all")


@pytest.fixture(scope="module", params=CASES)
def case(request, golden_clip_dir) -> Case:
    golden = Golden(f"family/{request.param}")
    return Case(golden, load_clip(str(golden_clip_dir(golden.meta))))


def test_tokens(case):
    """Learned places, fixed words and names put together are the published token ids."""
    learned = case.config.text_length
    for c, expected in enumerate(case.golden["tokens"]):
        ids, context = case.ids(c)
        np.testing.assert_array_equal(context[1 : learned + 1], range(learned))
        np.testing.assert_array_equal(ids[learned + 1 :], expected[learned + 1 : len(ids)])
        assert not expected[len(ids) :].any()


def test_initial_context_is_of_the_words(case):
    if not case.meta["start_noise"] and len(case.embedded):
        context = case.prompts["text"]["context"][0]
        np.testing.assert_array_equal(context, case.embedded[: len(context)])


def terms_of(case, outputs):
    """Return the terms of the loss that a golden file names, without their weights."""
    if not case.config.has_consistency:
        return {}
    terms = {"loss_ce": cross_entropy(outputs.logits, case.labels).mean()}
    if case.meta["kind"] == "KgCoOp":
        terms["score"] = text_distance("cosine", outputs.learned_texts, outputs.target_texts)
    else:
        terms["scl_text"] = text_distance("l1", outputs.learned_texts, outputs.target_texts)
        terms["scl_image"] = jnp.abs(outputs.features - outputs.zero_shot.features).mean()
        terms["scl_logits"] = divergence(outputs.target_logits, outputs.logits).mean()
    return terms


def test_target_texts(case):
    if case.meta["kind"] == "KgCoOp":
        found = normalize(case.target)
        assert relative_error(found, case.golden["frozen_text_features"]) < LOGITS
    elif case.config.has_consistency:
        assert relative_error(case.target, case.golden["fixed_embeddings"]) < LOGITS
        own = templates(method_config("promptsrc", "dtd"), "loss.template")
        assert own == case.meta["templates"]


def test_visual_tokens_that_are_made_of_the_text(case):
    if case.config.coupled:
        found = jax.jit(lambda p: apply(case.model, case.clip, p, method="visual_tokens"))(
            case.prompts
        )
        assert relative_error(found, case.golden["visual_prompts"]) < LOGITS
        fresh = init_prompts(case.model, jax.random.key(0))["coupling"]
        # All layers after the first start as copies of one draw.
        for weight in jax.tree.leaves(fresh):
            np.testing.assert_array_equal(weight[1], weight[-1])
            assert (weight[0] != weight[1]).any()


def test_numbers_at_the_start(case):
    (total, (outputs, texts)), gradient = case.step(case.prompts)
    golden = case.golden
    assert relative_error(outputs.logits, golden["logits"]) < LOGITS
    learned = texts.learned
    own = normalize(golden["image_features"])
    if case.config.conditioned:
        encode = functools.partial(apply, case.model, method="encode_text_for_images")
        learned = jax.jit(lambda *params: encode(*params, case.packed, own))(
            case.clip, case.prompts
        )
    assert relative_error(learned, golden["text_features"]) < LOGITS
    assert relative_error(outputs.features, own) < LOGITS
    assert total == pytest.approx(float(golden["loss"]), rel=1e-5)
    for name, term in terms_of(case, outputs).items():
        assert float(term) == pytest.approx(float(golden[name]), rel=1e-5), name
    if "zero_shot_features" in golden.arrays:
        own = normalize(golden["zero_shot_features"])
        assert relative_error(outputs.zero_shot.features, own) < LOGITS
        assert relative_error(outputs.target_logits, golden["zero_shot_logits"]) < LOGITS
    errors = errors_in_norm(gradient, prompts_of(golden.tensors("grad")))
    assert worst(errors) < GRADIENTS, errors


def test_training_trajectory(case):
    """One full batch per epoch: learning rates, losses, final prompts and logits, and average."""
    meta, golden = case.meta, case.golden
    weights = epoch_weights(meta["max_epoch"], meta.get("GPA_MEAN", 0), meta.get("GPA_STD", 0))
    epochs = meta["max_epoch"]
    schedule = Schedule(meta["lr"], meta["lr"], meta["warmup"], epochs, 1, average=weights)
    average = jax.tree.map(np.zeros_like, case.prompts)
    for epoch, rates, prompts in case.train(schedule):
        np.testing.assert_allclose([*rates.values()], [*golden["train_lrs"][epoch]] * 2, rtol=1e-6)
        if weights:
            averaged, average = average_epochs(schedule, epoch + 1, prompts, average)
            # Training does not depend on it before the last epoch.
            same = jax.tree.map(np.array_equal, averaged, prompts)
            assert all(jax.tree.leaves(same)) == (epoch < epochs - 1)
    errors = errors_in_norm(prompts, prompts_of(golden.tensors("final")))
    assert worst(errors) < GRADIENTS, errors
    (_, (outputs, _)), _ = case.step(prompts)
    assert relative_error(outputs.logits, golden["final_logits"]) < AFTER_TRAINING
    if weights:
        np.testing.assert_allclose(weights, golden["gauss"], rtol=1e-12)
        errors = errors_in_norm(averaged, prompts_of(golden.tensors("gpa")))
        assert worst(errors) < GRADIENTS, errors
        (_, (outputs, _)), _ = case.step(averaged)
        assert relative_error(outputs.logits, golden["gpa_logits"]) < AFTER_TRAINING


def test_new_prompts_have_the_published_shapes(case):
    fresh = prompt_shapes(case.model)
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, case.prompts)
