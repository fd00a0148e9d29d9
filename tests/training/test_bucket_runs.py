"""Runs that are kept in a bucket alone: what happens to machines that come and go, as spot VMs."""

import contextlib
import itertools
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from dpt_jax import distributed
from dpt_jax.io import as_path
from dpt_jax.storage.shelf import steps_of
from dpt_jax.training.checkpoints import load_newest
from dpt_jax.training.metrics import read_metrics
from dpt_jax.training.signals import EXIT_CODE
from tests.helpers.commands import in_process
from tests.helpers.faults import SETTINGS, Run
from tests.helpers.golden import SMALL
from tests.helpers.hosts import finish, start_hosts
from tests.helpers.object_store import ObjectStore, put_folder

pytestmark = pytest.mark.compiles

LONG = ["--config.train.epochs=20", "--config.checkpoint.every_steps=7"]  # 40 steps
IMPATIENT = "tests/helpers/impatient.py"


@pytest.fixture(scope="module")
def settings(clip_dir):
    return [*LONG, f"--config.clip.weights={clip_dir}", "--config.eval.save_logits=True"]


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
    """The workdir on this disk of a run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    in_process("main.py", *SETTINGS, *settings, f"--workdir={workdir}")
    return workdir


def assert_same_end(workdir, whole):
    """To the last bit: prompts, results, predictions and metrics."""
    there = as_path(workdir)
    jax.tree.map(
        np.testing.assert_array_equal, load_newest(there).prompts, load_newest(whole).prompts
    )
    assert (there / "results.json").read_bytes() == (whole / "results.json").read_bytes()
    records = [[{**record, "images_per_s": 0} for record in read_metrics(run)]
               for run in (there, whole)]  # fmt: skip
    assert records[0] == records[1]
    logits = []
    for run in (there, whole):
        with (run / "predictions.npz").open("rb") as file, np.load(file) as found:
            logits.append(found["logits"])
    np.testing.assert_array_equal(*logits)


class Machine:
    """A machine whose disk is lost with it."""

    def __init__(self, disk, *arguments, patience=180.0, **environment):
        self._disk = disk
        disk.mkdir(exist_ok=True)
        self.run = Run(
            *arguments,
            main=IMPATIENT,
            PATIENCE=str(patience),
            **environment,
            TMPDIR=str(disk),
            XDG_CACHE_HOME=str(disk / "cache"),
        )

    def lose(self):
        self.run.send(signal.SIGKILL)
        self.run.end()
        shutil.rmtree(self._disk)


def test_a_run_in_a_bucket_is_that_on_a_disk(settings, whole, bucket, store):
    workdir = f"{bucket}/runs/one"
    begun = len(store.requests())
    done = in_process("main.py", *SETTINGS, *settings, f"--workdir={workdir}")
    assert f"results: {workdir}/results.json" in done.stdout
    assert_same_end(workdir, whole)
    files = [
        {file.name.partition(".tfevents")[0] for file in run.iterdir()} - {".lock"}
        for run in (as_path(workdir), whole)
    ]
    assert files[0] == files[1]
    requests = len(store.requests()) - begun
    assert requests < 40 + 6 * 2 * 24 + 20 * 2, f"{requests} requests"
    done = in_process("main.py", *SETTINGS, *settings, f"--workdir={workdir}")
    assert "training is finished (step 40)" in done.stdout
    done = in_process("-m", "dpt_jax", "report", f"{bucket}/runs")
    assert f"written to {bucket}/runs: report.md, report.csv" in done.stdout
    done = in_process("-m", "dpt_jax", "report", workdir)
    assert (as_path(workdir) / "training.png").read_bytes().startswith(b"\x89PNG")


def kill(settings, workdir, disk, seconds):
    """Lose a machine some time after its training began; whether it was not done by then."""
    machine = Machine(disk, *settings, f"--workdir={workdir}")
    machine.run.read_until("Training coop")
    time.sleep(seconds)
    alive = machine.run.process.poll() is None
    machine.lose()
    return alive


@pytest.fixture
def own_store(tmp_path, monkeypatch):
    """A store of this test's own, which may end and start again."""
    started = ObjectStore(tmp_path / "log", tmp_path / "objects")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", started.url)
    yield started
    started.stop()


def test_what_happens_to_spot_machines(settings, whole, own_store, tmp_path, monkeypatch):
    """One after the other, with the same command and nothing but the bucket."""
    workdir = f"{own_store.bucket('own')}/run"
    arguments = [*settings, f"--workdir={workdir}"]
    # The store is gone for good: one sentence.
    machine = Machine(tmp_path / "disk", *arguments, patience=1.0)
    machine.run.read_until("epoch 6/")
    own_store.stop()
    assert machine.run.end() == 2
    assert "Traceback" not in machine.run.output
    last = machine.run.output.splitlines()[-1]
    assert last.startswith(f"error: {workdir}")
    assert "cannot be reached" in last
    own_store.start()
    shutil.rmtree(tmp_path / "disk")
    # The store fails for a moment, in the middle of a checkpoint; then the machine has to stop.
    machine = Machine(tmp_path / "disk", *arguments, patience=60.0)
    checkpoints = tmp_path / "objects" / "own" / "run" / "checkpoints"
    before = set(checkpoints.iterdir())
    while set(checkpoints.iterdir()) <= before:
        assert machine.run.process.poll() is None, machine.run.output
        time.sleep(0.002)
    own_store.stop()
    machine.run.read_until("the store fails")
    own_store.start()
    machine.run.read_until("epoch 12/")
    machine.run.send(signal.SIGTERM)
    assert machine.run.end() == EXIT_CODE, machine.run.output
    assert "the store fails" in machine.run.output
    assert "going on at step" in machine.run.output
    # The machine is gone without a word.
    machine = Machine(tmp_path / "another", *arguments)
    machine.run.read_until("epoch 16/")
    machine.lose()
    for name, seconds in {"REFRESH": 0.3, "SILENT": 2, "LOOK": 0.1}.items():
        monkeypatch.setattr(f"dpt_jax.storage.bucket_lock.{name}_SECONDS", seconds)
    done = in_process("main.py", *SETTINGS, *arguments)
    assert "its lock is taken over" in done.stdout
    assert "going on at step" in done.stdout
    assert_same_end(workdir, whole)


@pytest.mark.slow
def test_a_store_that_hangs(settings, whole, own_store, tmp_path):
    """It takes connections and answers nothing: for longer than one attempt, and for good."""
    workdir = f"{own_store.bucket('own')}/run"
    arguments = [*settings, f"--workdir={workdir}"]
    machine = Machine(tmp_path / "disk", *arguments, patience=1.0, ATTEMPT="2")
    machine.run.read_until("epoch 6/")
    with own_store.hanging():
        began = time.monotonic()
        assert machine.run.end() == 2
        assert time.monotonic() - began < 60
    assert "cannot be reached (it does not answer)" in machine.run.output
    assert "Traceback" not in machine.run.output
    machine = Machine(tmp_path / "another", *arguments, ATTEMPT="5")
    machine.run.read_until("epoch 12/")
    with own_store.hanging():
        time.sleep(20)
        assert machine.run.process.poll() is None
    assert machine.run.end() == 0, machine.run.output
    assert "the store fails (it does not answer); trying again" in machine.run.output
    assert_same_end(workdir, whole)


@pytest.mark.slow
def test_twenty_machines_that_are_lost(settings, whole, bucket, tmp_path, capsys):
    """At random moments of the training, its checkpoints and the evaluation."""
    moments = np.random.default_rng(0).uniform(0, 2.5, 20)
    hit = 0
    for i, seconds in enumerate(moments):
        workdir = f"{bucket}/run{i}"
        hit += kill(settings, workdir, tmp_path / "disk", seconds)
        machine = Machine(tmp_path / "disk", *settings, f"--workdir={workdir}")
        assert machine.run.end() == 0, machine.run.output
        shutil.rmtree(tmp_path / "disk")
        assert_same_end(workdir, whole)
    with capsys.disabled():
        print(f"\n{len(moments)} of {len(moments)} runs ended to the same bits, {hit} of them hit")
    assert hit > 10


@pytest.mark.slow
def test_two_hosts_that_share_a_bucket_alone(clip_dir, bucket, tmp_path):
    """One of them is lost, and both start again on new machines."""

    def start(workdir):
        variables = []
        for i in (0, 1):
            disk = tmp_path / f"disk {next(numbers)} of host {i}"
            disk.mkdir()
            variables.append(
                {"TMPDIR": str(disk), "XDG_CACHE_HOME": str(disk / "cache"), "PATIENCE": "180"}
            )
        return start_hosts(clip_dir, workdir, main=IMPATIENT, variables=variables)

    numbers = itertools.count()
    whole, workdir = tmp_path / "whole", f"{bucket}/run"
    finish(start_hosts(clip_dir, whole))
    first, second = processes = start(workdir)
    try:
        deadline = time.monotonic() + 120
        while not steps_of(as_path(f"{workdir}/checkpoints")):
            assert time.monotonic() < deadline, "no checkpoint was written"
            time.sleep(0.02)
        second.kill()
        first.communicate(timeout=4 * distributed.HEARTBEAT_SECONDS)
        assert first.returncode != 0
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    output, _ = finish(start(workdir))
    assert "its lock is taken over" in output
    assert "going on at step" in output
    assert_same_end(workdir, whole)


def test_what_else_a_bucket_may_hold(clip_dir, whole, bucket, tmp_path):
    """Data, prompts to start from and to hand on, images, sweeps and their reports."""
    put_folder(SMALL / "images", f"{bucket}/images")
    data = [f"--config.dataset.root={bucket}/images", f"--config.clip.weights={clip_dir}"]
    short = [*data, "--config.text_prompt.length=4", "--config.train.epochs=1"]
    in_process("-m", "dpt_jax", "convert", "export", str(whole), f"{bucket}/a.safetensors")
    in_process(
        "-m", "dpt_jax", "sweep", "--methods=zeroshot,coop", "--datasets=folder", "--shots=1",
        "--seeds=1", f"--runs={bucket}/runs", *data, "--config.train.epochs=1",
    )  # fmt: skip
    in_process(
        "main.py", "--config=configs/coop.py:folder", *short, f"--workdir={bucket}/second",
        f"--config.init_from={bucket}/a.safetensors",
    )  # fmt: skip
    image = f"{bucket}/images/test"
    done = in_process(
        "-m", "dpt_jax", "predict", f"{bucket}/second", image, f"--csv={bucket}/answers.csv"
    )
    assert f"written to {bucket}/answers.csv: 18 images" in done.stdout
    assert (as_path(bucket) / "answers.csv").read_text().count("\n") == 19
    done = in_process("-m", "dpt_jax", "report", f"{bucket}/runs")
    assert "CoOp" in done.stdout
    assert (as_path(bucket) / "runs" / "report.png").is_file()
    in_process("-m", "dpt_jax", "report", f"{bucket}/second", "--html")
    assert "data:image/png" in (as_path(bucket) / "second" / "report.html").read_text()
    found = next(as_path(f"{bucket}/images/test").rglob("*.*"))
    done = in_process("-m", "dpt_jax", "visualize", f"{bucket}/second", str(found))
    assert done.stdout.startswith(f"{bucket}/second/pictures/")
    done = in_process(
        "main.py", "--config=configs/coop.py:folder", *data, "--mode=eval",
        f"--config.init_from={bucket}/a.safetensors",
    )  # fmt: skip
    assert f"results: {bucket}/a/on/folder/results.json" in done.stdout
