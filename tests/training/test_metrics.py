"""metrics.jsonl and TensorBoard events of a run that is resumed, on a disk and in a bucket."""

import pytest
from tensorboardX.proto.event_pb2 import Event

from dpt_jax.io import as_path
from dpt_jax.training.metrics import METRICS_FILE, MetricWriter, read_metrics


def events(content):
    """The (step, purge) of the scalars of an event file: length, check sum, event, check sum."""
    found = []
    while content:
        length = int.from_bytes(content[:8], "little")
        event = Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]
        found += [event.step for value in event.summary.value]
    return found


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_no_step_is_there_twice(place, request, tmp_path):
    workdir = tmp_path
    if place == "bucket":
        workdir = as_path(request.getfixturevalue("bucket")) / "run"
    for start, loss in ((0, 1.0), (2, 0.5)):  # killed after step 4, resumed after step 2
        with MetricWriter(workdir, start) as writer:
            for step in (start + 1, start + 2):
                writer.write(step, {"loss": loss})
                assert read_metrics(workdir)[-1] == {"step": step, "loss": loss}
            if not start:
                writer.write(3, {"loss": 7.0})
    assert [record["loss"] for record in read_metrics(workdir)] == [1.0, 1.0, 0.5, 0.5]
    written = [file for file in workdir.iterdir() if "tfevents" in file.name]
    assert {step for file in written for step in events(file.read_bytes())} == {1, 2, 3, 4}


def test_a_line_that_was_cut_is_left_out(tmp_path):
    (tmp_path / METRICS_FILE).write_bytes(b'{"step": 1, "loss": 0.5}\n{"step": 2, "lo\xff')
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.5}]
