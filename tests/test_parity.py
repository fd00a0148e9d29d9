"""DPT and CoOp against arrays computed by the published code (float32, CPU)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpt_jax.clip.model import normalize
from dpt_jax.config import method_config, templates
from dpt_jax.model import init_prompts
from dpt_jax.training.losses import cross_entropy, divergence, text_distance
from dpt_jax.training.optimizer import Schedule, average_epochs, epoch_weights
from tests.helpers.golden import assert_close_in_norm, relative_error
from tests.helpers.models import apply, prompt_shapes
from tests.helpers.published_cases import Case, prompts_of

LOGITS = 1e-5  # of the largest entry
AFTER_TRAINING = 3e-5  # the same, of eight steps later
GRADIENTS = 1e-4  # of the norm


@pytest.fixture(scope="module", params=["dpt_last_layer", "coop_end"])
def case(request, golden_clip_dir) -> Case:
    return Case(request.param, golden_clip_dir)


def test_tokens(case):
    """Prefix, learned places, fixed words and names put together are the published token ids."""
    layout = case.packed
    for c, expected in enumerate(case.golden["tokens"]):
        ids, context = case.ids(c)
        own = context < 0
        np.testing.assert_array_equal(context[~own], range(case.config.text_length))
        np.testing.assert_array_equal(ids[own], expected[: len(ids)][own])
        assert not expected[len(ids) :].any()
        np.testing.assert_array_equal(
            layout.position_ids[layout.segment_ids == c],
            np.arange(len(layout.prefix_tokens), len(ids)),
        )
        row, place = np.divmod(layout.eot_index[c], layout.eot_positions.shape[1])
        assert layout.tokens[row, layout.eot_positions[row, place]] == ids[-1]


def test_new_prompts_are_as_published(case):
    """Their shapes, and the words that the context starts from."""
    fresh = prompt_shapes(case.model)
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, case.prompts)
    if not case.meta.get("start_noise", True) and len(case.embedded):
        context = case.prompts["text"]["context"][0]
        np.testing.assert_array_equal(context, case.embedded[: len(context)])


def test_target_texts(case):
    if case.meta["kind"] == "KgCoOp":
        found = normalize(case.target)
        assert relative_error(found, case.golden["frozen_text_features"]) < LOGITS
    elif case.config.has_consistency:
        assert relative_error(case.target, case.golden["fixed_embeddings"]) < LOGITS
        own = templates(method_config("promptsrc", "dtd"), "loss.template")
        assert own == case.meta["templates"]


def test_visual_tokens_that_are_computed_from_the_text(case):
    if case.config.coupled:
        tokens = jax.jit(functools.partial(apply, case.model, method="visual_tokens"))
        found = tokens(case.clip, case.prompts)
        assert relative_error(found, case.golden["visual_prompts"]) < LOGITS
        fresh = init_prompts(case.model, jax.random.key(0))["coupling"]
        # All layers after the first start as copies of one draw.
        for weight in jax.tree.leaves(fresh):
            np.testing.assert_array_equal(weight[1], weight[-1])
            assert (weight[0] != weight[1]).any()


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


def arrays_of(case, outputs, texts):
    """Return the outputs that a golden file of this kind has, by its names for them."""
    arrays = {"logits": outputs.logits}
    if case.meta["kind"] == "CoOp":
        return arrays
    if case.meta["kind"] == "DPT":
        arrays |= {"logits_text": outputs.text_logits, "logits_image": outputs.image_logits}
        return arrays | {"layer_logits": outputs.auxiliary_logits}
    arrays["text_features"] = texts.learned
    if case.config.conditioned:
        encode = functools.partial(apply, case.model, method="encode_text_for_images")
        z = normalize(case.golden["image_features"])
        arrays["text_features"] = jax.jit(encode)(case.clip, case.prompts, case.packed, z)
    if "zero_shot_features" in case.golden.arrays:
        arrays["zero_shot_logits"] = outputs.target_logits
    return arrays


def test_numbers_before_training(case):
    """With DPT's guidance and without, if a file has both."""
    golden = case.golden
    phases = {"_early": True, "_late": False} if "loss_early" in golden.arrays else {"": False}
    for suffix, guided in phases.items():
        (loss, (outputs, texts)), gradient = case.step(case.prompts, guided)
        assert loss == pytest.approx(float(golden[f"loss{suffix}"]), rel=1e-5)
        expected = prompts_of(golden.tensors(f"grad{suffix}"))
        assert_close_in_norm(gradient, expected, GRADIENTS)
    for name, found in arrays_of(case, outputs, texts).items():
        assert relative_error(found, golden[name]) < LOGITS, name
    if case.meta["kind"] == "DPT":
        np.testing.assert_array_equal(outputs.zero_shot.indices, golden["indices"])
    for name, own in (("image", outputs.features), ("zero_shot", outputs.zero_shot.features)):
        if f"{name}_features" in golden.arrays:
            assert relative_error(own, normalize(golden[f"{name}_features"])) < LOGITS
    for name, term in terms_of(case, outputs).items():
        assert float(term) == pytest.approx(float(golden[name]), rel=1e-5), name


def test_training_trajectory(case):
    """One full batch per epoch: learning rates, losses, final prompts and logits, and average."""
    meta, golden = case.meta, case.golden
    weights = epoch_weights(meta["max_epoch"], meta.get("GPA_MEAN", 0), meta.get("GPA_STD", 0))
    epochs, two_rates = meta["max_epoch"], meta["kind"] in ("DPT", "CoOp")
    text_rate = 0.002 if two_rates else meta["lr"]
    schedule = Schedule(meta["lr"], text_rate, meta["warmup"], epochs, 1, average=weights)
    average = jax.tree.map(np.zeros_like, case.prompts)
    for epoch, rates, prompts in case.train(schedule, guidance=epochs // 2 if two_rates else 0):
        published = golden["train_lrs"][epoch]
        visual = [rates["visual"]] * (len(published) - 1 if two_rates else 1)
        expected = published if two_rates else [*published] * 2
        np.testing.assert_allclose([*visual, rates["text"]], expected, rtol=1e-6)
        if weights:
            averaged, average = average_epochs(schedule, epoch + 1, prompts, average)
            # Training does not depend on it before the last epoch.
            same = jax.tree.map(np.array_equal, averaged, prompts)
            assert all(jax.tree.leaves(same)) == (epoch < epochs - 1)
    ends = {"final": prompts}
    if weights:
        np.testing.assert_allclose(weights, golden["gauss"], rtol=1e-12)
        ends["gpa"] = averaged
    for name, found in ends.items():
        assert_close_in_norm(found, prompts_of(golden.tensors(name)), GRADIENTS)
        (_, (outputs, _)), _ = case.step(found)
        assert relative_error(outputs.logits, golden[f"{name}_logits"]) < AFTER_TRAINING
