"""How busy the devices are, and traces of steps."""

import types

import jax
import jax.numpy as jnp
import pytest

from dpt_jax import flops
from dpt_jax.errors import UserError
from dpt_jax.io import as_path
from dpt_jax.training.speed import TRACES, Speed, Trace


class Clock:
    """A clock that is set."""

    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.mark.parametrize("ready", [True, False])
def test_an_epoch_says_how_fast_it_was(ready, monkeypatch):
    """Two steps of six images in four seconds, of which getting a batch took one.

    It counts as waiting only if the devices had nothing else to do.
    """
    clock = Clock()
    monkeypatch.setattr("dpt_jax.training.speed.time", clock)
    monkeypatch.setattr(flops, "peak", lambda kind: 1e12)
    monkeypatch.setattr(flops, "step", lambda model, texts, images, guided: images * 1e11)
    packed = jnp.zeros((1, 1))
    experiment = types.SimpleNamespace(model=None, frozen=types.SimpleNamespace(packed=packed))
    speed = Speed(experiment, guidance_epochs=0)
    step = types.SimpleNamespace(is_ready=lambda: ready)
    with speed.waiting(types.SimpleNamespace(step=step)):
        clock.now += 1
    for _ in range(2):
        speed.count(6)
    clock.now += 3
    values = speed.epoch(1)
    assert values["images_per_s"] == 3
    assert values["tflop_per_s"] == pytest.approx(0.3)
    assert values["peak_share"] == pytest.approx(0.3 / jax.device_count())
    assert values["wait_share"] == (0.25 if ready else 0)


def test_the_peak_is_of_the_chip_that_jax_names():
    known = {"TPU v5 lite": 197e12, "TPU v5p": 459e12, "TPU v6 lite": 918e12, "cpu": None,
             "TPU7x": 1153.5e12, "NVIDIA H100 80GB HBM3": 989e12, "NVIDIA L4": 121e12}  # fmt: skip
    assert {kind: flops.peak(kind) for kind in known} == known


def test_a_trace_is_of_the_steps_asked_for(tmp_path, capsys):
    with Trace(as_path(tmp_path), 2, start=0, last=9) as trace:
        for step in range(1, 9):
            trace.before(step, jnp.zeros(1) + step)
            assert trace._runs == (step in (3, 4))
    assert list((tmp_path / TRACES).rglob("*.xplane.pb"))
    with pytest.raises(UserError, match="--profile"):
        Trace("gs://bucket/run", 2, 0, 9)
