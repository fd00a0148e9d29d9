"""Metrics of a resumed run, the utilisation of its devices, and traces of steps."""

import types

import jax
import jax.numpy as jnp
import pytest
from tensorboardX.proto.event_pb2 import Event

from dpt_jax.errors import UserError
from dpt_jax.io import as_path
from dpt_jax.training import metrics


def events(content):
    """The (step, purge) of the scalars of an event file: length, check sum, event, check sum."""
    found = []
    while content:
        length = int.from_bytes(content[:8], "little")
        event = Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]
        found += [event.step for value in event.summary.value]
    return found


def test_no_step_is_there_twice(workdir):
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


def test_a_line_that_was_cut_is_left_out(tmp_path):
    (tmp_path / metrics.METRICS_FILE).write_bytes(b'{"step": 1, "loss": 0.5}\n{"step": 2, "lo\xff')
    assert metrics.read_metrics(tmp_path) == [{"step": 1, "loss": 0.5}]


@pytest.mark.parametrize("ready", [True, False])
def test_an_epoch_says_how_fast_it_was(ready, monkeypatch):
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


def test_operations_are_those_of_the_products_whose_result_is_used():
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


def test_a_trace_is_of_the_steps_asked_for(tmp_path, capsys):
    with metrics.tracing(as_path(tmp_path), 2, start=0, last=9) as before:
        for step in range(1, 9):
            before(step, jnp.zeros(1) + step)
            assert ("trace:" in capsys.readouterr().out) == (step == 5)
            assert (tmp_path / metrics.TRACES).exists() == (step >= 5)
    assert list((tmp_path / metrics.TRACES).rglob("*.xplane.pb"))
    with pytest.raises(UserError, match="--profile"), metrics.tracing("gs://bucket/run", 2, 0, 9):
        pass
