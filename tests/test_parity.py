"""The method against arrays computed by the published code (float32, CPU)."""

import numpy as np
import pytest

from dpt_jax.training.optimizer import Schedule
from tests.helpers.golden import Golden, errors_in_norm, relative_error, worst
from tests.helpers.published_cases import Case, prompts_of

LOGITS = 1e-4  # of the largest logit
GRADIENTS = 1e-3  # of the norm


@pytest.fixture(scope="module", params=["dpt_last_layer", "coop_end"])
def case(request, clip) -> Case:
    return Case(Golden(request.param), clip)


def test_tokens(case, clip):
    """Prefix, context places and own tokens put together are the published token ids."""
    placeholder, layout = clip.tokenizer.encode("X")[0], case.packed
    for c, expected in enumerate(case.golden["tokens"]):
        ids, context = case.ids(c)
        ids = np.where(context >= 0, placeholder, ids)
        np.testing.assert_array_equal(ids, expected[: len(ids)])
        assert not expected[len(ids) :].any()
        np.testing.assert_array_equal(
            layout.position_ids[layout.segment_ids == c],
            np.arange(len(layout.prefix_tokens), len(ids)),
        )
        row, place = np.divmod(layout.eot_index[c], layout.eot_positions.shape[1])
        assert layout.tokens[row, layout.eot_positions[row, place]] == clip.tokenizer.end


def test_logits(case):
    (_, (outputs, _)), _ = case.step(case.prompts)
    assert relative_error(outputs.logits, case.golden["logits"]) < LOGITS
    if case.meta["kind"] == "DPT":
        assert relative_error(outputs.text_logits, case.golden["logits_text"]) < LOGITS
        assert relative_error(outputs.image_logits, case.golden["logits_image"]) < LOGITS
        assert relative_error(outputs.auxiliary_logits, case.golden["layer_logits"]) < LOGITS
        np.testing.assert_array_equal(outputs.zero_shot.indices, case.golden["indices"])


@pytest.mark.parametrize("phase", ["early", "late"])
def test_loss_and_gradients(case, phase):
    (loss, _), gradient = case.step(case.prompts, phase == "early")
    assert loss == pytest.approx(float(case.golden[f"loss_{phase}"]), rel=1e-5)
    expected = prompts_of(case.golden.tensors(f"grad_{phase}"))
    errors = errors_in_norm(gradient, expected)
    assert worst(errors) < GRADIENTS, errors


def test_training_trajectory(case):
    """One full batch per epoch: learning rates, losses, final prompts and logits."""
    epochs, meta = case.meta["max_epoch"], case.meta
    schedule = Schedule(meta["lr"], 0.002, meta["warmup"], epochs, steps_per_epoch=1)
    steps = [*case.train(schedule, guidance=epochs // 2)]
    for epoch, rates, _ in steps:
        published_rates = case.golden["train_lrs"][epoch]
        expected = [rates["visual"]] * (len(published_rates) - 1) + [rates["text"]]
        np.testing.assert_allclose(expected, published_rates, rtol=1e-6)
    prompts = steps[-1][-1]
    errors = errors_in_norm(prompts, prompts_of(case.golden.tensors("final")))
    assert worst(errors) < GRADIENTS, errors
    (_, (outputs, _)), _ = case.step(prompts)
    assert relative_error(outputs.logits, case.golden["final_logits"]) < LOGITS
