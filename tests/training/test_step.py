"""One step: its losses, gradient, rates and optimizer; metrics, and the utilisation of devices."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as tries
from hypothesis import strategies as st
from tensorboardX.proto.event_pb2 import Event

from dpt_jax import distributed
from dpt_jax.clip.packing import pack
from dpt_jax.errors import UserError
from dpt_jax.io import as_path
from dpt_jax.model import Outputs, PromptedCLIP, Texts, ZeroShot
from dpt_jax.prompts import L1, Consistency, PromptConfig, Weights
from dpt_jax.prompts.text import prompted_texts
from dpt_jax.training import metrics
from dpt_jax.training.losses import Rows, count, losses
from dpt_jax.training.optimizer import Schedule, learning_rates, make_optimizer
from dpt_jax.training.step import StepConfig, accumulate_gradients
from tests.helpers.golden import assert_close_in_norm
from tests.helpers.models import prompt_shapes
from tests.helpers.plain_towers import normal, random_like

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


@pytest.mark.compiles
@tries(deadline=None, max_examples=20)
@given(
    st.integers(0, 1000), st.sampled_from((1, 4)), st.booleans(), st.sampled_from(("l1", "cosine"))
)
def test_padding_and_parts_do_not_change_the_loss(seed, rows, guided, kind):
    """Padded, in two parts that share global counts: gradient accumulation and several devices."""
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


NAMES = ["airplane", "sea_horse", "a rather long name"]
# A context for each image, visual tokens that are computed from it and stay up to the layer of the
# class-aware prompts, and losses that regularise all of them towards frozen CLIP.
# Dropout has a mask per image or text; some layers learn nothing.
VISUAL = {"visual_length": 3, "visual_depth": 2, "ln_pre": True, "coupled": True}
EVERYTHING = PromptConfig(
    len(NAMES), text_length=3, text_depth=2, conditioned=True, **VISUAL, top_k=2, first_layer=3,
    consistency=Consistency(5.0, L1, 3.0, 2.0),
    weights=Weights("lora", 2, 1.0, "qkvo", 0.5, (1, 0), (2, 2)),
)  # fmt: skip


@pytest.mark.compiles
@pytest.mark.parametrize(
    ("remat", "microbatch", "devices"),
    [("blocks", 1, 2), pytest.param("matmuls", 2, 2, marks=pytest.mark.slow)],
)
def test_remat_microbatches_and_devices_do_not_change_a_gradient(
    tiny_clip, remat, microbatch, devices
):
    """The gradient of every part, against all images at once without remat."""
    prompts = random_like(
        prompt_shapes(PromptedCLIP(tiny_clip.config, EVERYTHING)), seed=7, scale=0.1
    )
    expected = gradient(tiny_clip, prompts, "none", microbatch=0, on=1)
    found = gradient(tiny_clip, prompts, remat, microbatch, devices)
    assert_close_in_norm(found, expected, 1e-4)


def gradient(clip, prompts, remat, microbatch, on):
    """The gradient of a step under guidance, on so many simulated devices."""
    model = PromptedCLIP(clip.config, EVERYTHING, remat=remat)
    # A text tower with dropout shares no prefix between texts.
    packed = pack(prompted_texts(NAMES, clip.tokenizer, EVERYTHING.text_length), share=False)
    size, embed = clip.config.image_size, clip.config.embed_dim
    texts, held = normal(1, 2, len(NAMES), embed)
    batch = {
        "image": normal(2, on, 4 // on, size, size, 3),
        "index": np.arange(4).reshape(on, -1),
        "label": np.array([0, 1, 2, 1]).reshape(on, -1),
        # The last one is padding.
        "weight": np.array([1.0, 1.0, 1.0, 0.0], np.float32).reshape(on, -1),
    }

    def step(frozen, prompts, batch):
        guided, key, config = jnp.array(True), jax.random.key(3), StepConfig(0.3, microbatch)
        own, _ = accumulate_gradients(model, config, prompts, *frozen, batch, guided, key)
        return jax.lax.psum(own, distributed.AXIS)

    together = jax.vmap(step, (None, None, 0), axis_name=distributed.AXIS)
    found = jax.jit(together)((clip.params, Texts(packed, texts, held)), prompts, batch)
    return jax.tree.map(lambda x: np.asarray(x[0]), found)


@pytest.mark.parametrize("step", [0, 3, 4, 102, 197, 198, 199])
def test_learning_rates_to_the_end_of_a_long_run(step):
    """Near the end of a cosine, 1 + cos cancels."""
    by_epochs = Schedule(0.01, 0.002, 4, 200, steps_per_epoch=1, weights_lr=2e-4)
    by_steps = by_epochs._replace(cosine_steps=200)
    cosine = (1 + np.cos(np.pi * (step - 4) / 200)) / 2
    rate = learning_rates(by_epochs.as_arrays(), step)["visual"]
    assert rate == pytest.approx(0.01 * cosine if step >= 4 else 1e-5, rel=1e-6)
    expected = 1e-6 + (2e-4 - 1e-6) * (1 + np.cos(np.pi * step / 200)) / 2
    rate = learning_rates(by_steps.as_arrays(), step)["weights"]
    assert rate == pytest.approx(expected, rel=1e-6)


def test_first_steps_of_adamw():
    """1 − β^t is precise although β is near 1 and t is small."""
    start, gradients = (np.random.default_rng(0).normal(size=(n, 5)) for n in (1, 3))
    optimizer, prompts = make_optimizer("adamw", 0.01), {"weights": jnp.float32(start[0])}
    state, x, mean, square = optimizer.init(prompts), start[0], 0.0, 0.0
    for step, gradient in enumerate(gradients, 1):
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        adam = mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        steps, state = optimizer.update({"weights": jnp.float32(gradient)}, state, prompts)
        np.testing.assert_allclose(steps["weights"], adam + 0.01 * x, rtol=3e-6)
        x, prompts = x - adam - 0.01 * x, {"weights": prompts["weights"] - steps["weights"]}


def events(content):
    """The (step, purge) of the scalars of an event file: length, check sum, event, check sum."""
    found = []
    while content:
        length = int.from_bytes(content[:8], "little")
        event = Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]
        found += [event.step for value in event.summary.value]
    return found


def test_no_step_is_recorded_twice(workdir):
    for start, loss in ((0, 1.0), (2, 0.5)):  # killed after step 4, resumed after step 2
        with metrics.metric_writer(workdir, start) as write:
            for step in (start + 1, start + 2):
                write(step, {"loss": loss})
                assert metrics.read_metrics(workdir)[-1] == {"step": step, "loss": loss}
            if not start:
                write(3, {"loss": 7.0})
    assert [record["loss"] for record in metrics.read_metrics(workdir)] == [1.0, 1.0, 0.5, 0.5]
    written = [file for file in workdir.iterdir() if "tfevents" in file.name]
    assert {step for file in written for step in events(file.read_bytes())} == {1, 2, 3, 4}


def test_a_truncated_line_is_ignored(tmp_path):
    (tmp_path / metrics.METRICS_FILE).write_bytes(b'{"step": 1, "loss": 0.5}\n{"step": 2, "lo\xff')
    assert metrics.read_metrics(tmp_path) == [{"step": 1, "loss": 0.5}]


@pytest.mark.parametrize("ready", [True, False])
def test_speed_of_an_epoch(ready, monkeypatch):
    """Two steps of six images in four seconds, one of them waiting for a batch.

    It counts as waiting only if the devices had nothing else to do.
    """
    clock = types.SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(metrics, "time", clock)
    monkeypatch.setattr(metrics, "peak_rate", lambda kind: 1e12)
    speed = metrics.Speed()
    step = types.SimpleNamespace(is_ready=lambda: ready)
    with speed.waiting(types.SimpleNamespace(step=step)):
        clock.now += 1
    for _ in range(2):
        speed.count(6)
    clock.now += 3
    expected = {"images_per_s": 3, "tflop_per_s": 0.3, "peak_share": 0.3 / jax.device_count()}
    expected["wait_share"] = 0.25 if ready else 0
    values = speed.epoch(6e11)
    assert {key: values[key] for key in expected} == pytest.approx(expected)


def test_only_matrix_products_that_are_used_are_counted():
    """A product before a loop of three, each (4, 8) times (8, 8), and an unused one."""

    def program(x, w):
        unused = w @ w
        y, _ = jax.lax.scan(lambda y, _: (jnp.tanh(y @ w), unused), x @ w, length=3)
        return y

    x, w = jnp.ones((4, 8)), jnp.ones((8, 8))
    forward = 4 * 2 * 4 * 8 * 8
    assert metrics.count_operations(program, x, w) == forward
    assert metrics.count_operations(jax.grad(lambda x, w: program(x, w).sum()), x, w) == 2 * forward


def test_the_peak_is_of_the_chip_that_jax_names():
    known = {"TPU v5 lite": 197e12, "TPU v5p": 459e12, "TPU v6 lite": 918e12, "cpu": None,
             "TPU7x": 1153.5e12, "NVIDIA H100 80GB HBM3": 989e12, "NVIDIA L4": 121e12}  # fmt: skip
    assert {kind: metrics.peak_rate(kind) for kind in known} == known


def test_a_trace_has_the_requested_steps(tmp_path, capsys):
    with metrics.tracing(as_path(tmp_path), 2, start=0, last=9) as before:
        for step in range(1, 9):
            before(step, jnp.zeros(1) + step)
            assert ("trace:" in capsys.readouterr().out) == (step == 5)
            assert (tmp_path / metrics.TRACES).exists() == (step >= 5)
    assert list((tmp_path / metrics.TRACES).rglob("*.xplane.pb"))
    with pytest.raises(UserError, match="--profile"), metrics.tracing("gs://bucket/run", 2, 0, 9):
        pass
