"""Runs of two processes on loopback, two simulated devices each."""

import functools
import io
import json
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from dpt_jax import distributed
from dpt_jax.io import as_path
from dpt_jax.training.checkpoints import load_newest, steps_of
from dpt_jax.training.state import EXIT_CODE
from tests.helpers.commands import command, in_process, refused
from tests.helpers.configs import IMAGES, flags_of
from tests.helpers.runs import OF_HOSTS, assert_same_end, finish, outputs, start_hosts

pytestmark = pytest.mark.process

# Hosts share the texts of the classes, and end with an average of epochs.
FEATURES = flags_of(train__average_mean=2, train__average_deviation=1)


def stop_at(text, processes):
    """Send a SIGTERM to the second host when the first has printed a text; both stop."""
    first, second = processes
    for line in first.stdout:
        if text in line:
            break
    second.terminate()
    printed = outputs(processes)
    assert [process.returncode for process in processes] == [EXIT_CODE, EXIT_CODE], printed


def assert_as_one_device(method, clip_dir, workdir, alone, *options):
    """Train the same in this process, and compare the prompts."""
    flags = [*OF_HOSTS, f"--config.clip.weights={clip_dir}", *options, f"--workdir={alone}"]
    in_process("main.py", f"--config=configs/{method}.py:folder", *flags)
    one, two = load_newest(alone).prompts, load_newest(workdir).prompts
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), two, one)


@pytest.fixture(scope="module")
def hosts(tiny_clip_dir):
    """Start main.py with CoOp on two hosts. Parts of the image tower treat each image alone."""
    return functools.partial(start_hosts, tiny_clip_dir, *FEATURES)


def test_two_hosts_that_were_stopped_compute_what_one_does(hosts, tiny_clip_dir, bucket, tmp_path):
    """In a bucket, started by srun, and by a SIGTERM to one host; against a run of one device.

    18 test images in batches of 8 are shared unequally on four devices.
    """
    workdir, alone = as_path(f"{bucket}/run"), tmp_path / "one"
    stop_at("epoch 2/", hosts(workdir=workdir, slurm=True))
    stopped = load_newest(workdir).step
    assert 0 < stopped < 24
    first, second = finish(hosts(workdir=workdir, slurm=True))
    # Host 0 prints and writes.
    assert "4 cpu devices of 2 hosts" in first
    assert f"resuming at step {stopped} of 24" in first
    assert "epoch" not in second
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [*range(1, 13)]
    assert len(list(workdir.glob("events.out.tfevents.*"))) == 2

    assert_as_one_device("coop", tiny_clip_dir, workdir, alone, *FEATURES)
    found, expected = (
        np.load(io.BytesIO((run / "predictions.npz").read_bytes())) for run in (workdir, alone)
    )
    for name in ("label", "path", "classnames"):
        np.testing.assert_array_equal(found[name], expected[name])
    np.testing.assert_allclose(found["logits"], expected["logits"], atol=1e-3)


@pytest.mark.slow
def test_two_hosts_train_the_classifier_of_one(tiny_clip_dir, tmp_path):
    """The hosts have unequal shares of 11 images. A SIGTERM to one of them stops both midway."""
    images = shutil.copytree(IMAGES, tmp_path / "images")
    min((images / "train").rglob("*.png")).unlink()
    options = [f"--config.dataset.root={images}", "--config.train.epochs=1",
               "--config.classifier.views=301"]  # fmt: skip
    workdir, alone = tmp_path / "two", tmp_path / "one"

    def begin():
        return start_hosts(tiny_clip_dir, *options, workdir=workdir, method="dpt_zslp")

    stop_at("Training the classifier", begin())
    before = load_newest(workdir)
    assert "classifier" not in before.prompts
    finish(begin())
    two = load_newest(workdir)
    jax.tree.map(np.testing.assert_array_equal, two.prompts | before.prompts, two.prompts)
    assert_as_one_device("dpt_zslp", tiny_clip_dir, workdir, alone, *options)


@pytest.mark.slow
def test_killed(hosts, bucket, tmp_path):
    """SIGKILL to one host ends the other too; when resumed, the run ends like one left alone."""
    workdir, whole = f"{bucket}/run", tmp_path / "whole"
    hosts = functools.partial(hosts, method="dpt")
    finish(hosts(workdir=whole))
    first, second = processes = hosts(workdir=workdir)
    deadline = time.monotonic() + 120
    while not steps_of(as_path(f"{workdir}/checkpoints")):
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.05)
    second.send_signal(signal.SIGKILL)
    printed = outputs(processes, timeout=3 * distributed.HEARTBEAT_SECONDS)
    assert first.returncode != 0, printed
    finish(hosts(workdir=workdir))
    assert_same_end(workdir, whole)


def test_an_error_on_one_host_ends_both(tiny_clip_dir, tmp_path):
    """Host 1 reads every second image, of which one is damaged; host 0 waits for it."""
    images = shutil.copytree(IMAGES, tmp_path / "images")
    damaged = sorted((images / "test").rglob("*.png"))[1]
    damaged.write_bytes(b"not a picture")
    first, second = processes = start_hosts(
        tiny_clip_dir, f"--config.dataset.root={images}", workdir=tmp_path / "run",
        method="zeroshot",
    )  # fmt: skip
    began = time.monotonic()
    _, printed = outputs(processes, timeout=120)
    assert time.monotonic() - began < 100
    assert second.returncode == 2
    assert first.returncode != 0
    assert str(damaged) in printed.splitlines()[-1]
    assert "Traceback" not in printed


def test_hosts_of_different_sizes_end_in_a_sentence(tiny_clip_dir, tmp_path):
    processes = start_hosts(tiny_clip_dir, workdir=tmp_path / "run", devices=(2, 1))
    printed = outputs(processes, timeout=120)
    assert "host 0 has 2, host 1 has 1" in printed[0]
    assert processes[0].returncode == 2, printed


# A process that waits only briefly for another one.
ALONE = """
import sys
from dpt_jax import cli, distributed
distributed.CONNECT_SECONDS = 2.0
cli.main_py(sys.argv[1:])
"""


def test_missing_processes():
    """Messages name the cause, and then the process ends."""
    variables = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "4"}
    variables |= {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    done = command("-c", ALONE, check=False, **variables)
    assert done.returncode == 2, done.stderr
    for line in done.stderr.strip().splitlines()[-2:]:  # while it waits, and at the end
        assert "SLURM_STEP_NUM_TASKS=4" in line


@pytest.mark.parametrize("flags", [("localhost:1",), (None, 2, 0), ("localhost:1", 2, 0, True)])
def test_contradicting_flags_are_refused(flags):
    refused("--coordinator, --processes and --process", distributed.connect, *flags)
