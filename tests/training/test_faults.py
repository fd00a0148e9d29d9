"""Whatever happens to the process, the disk or the numbers: what is kept, and what is said."""

import json
import pathlib
import shutil
import signal

import jax
import numpy as np
import pytest

from dpt_jax.storage.lock import locked
from dpt_jax.training.checkpoints import DAMAGED, load_newest
from dpt_jax.training.signals import EXIT_CODE
from tests.helpers.commands import COMPILATION, assert_refused, command, in_process
from tests.helpers.faults import SETTINGS, Run, kill_at_random, settings_of

pytestmark = pytest.mark.compiles


LONG = ["--config.train.epochs=60", "--config.checkpoint.every_steps=7"]  # 120 steps, seconds long


@pytest.fixture(scope="module")
def weights(clip_dir):
    return f"--config.clip.weights={clip_dir}"


@pytest.fixture(scope="module")
def whole(weights, tmp_path_factory):
    """The workdir of the long run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    in_process("main.py", *SETTINGS, weights, *LONG, f"--workdir={workdir}")
    return workdir


def assert_same_end(workdir, whole):
    """To the last bit: prompts, results and metrics."""
    jax.tree.map(
        np.testing.assert_array_equal, load_newest(workdir).prompts, load_newest(whole).prompts
    )
    assert (workdir / "results.json").read_text() == (whole / "results.json").read_text()

    def told(folder):
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [
            {key: value for key, value in record.items() if key != "images_per_s"}
            for record in records
        ]

    assert told(workdir) == told(whole)


@pytest.mark.parametrize(
    ("number", "workers"), [(signal.SIGTERM, 0), (signal.SIGTERM, 2), (signal.SIGINT, 2)]
)
def test_a_signal_saves_and_the_run_goes_on_to_the_same_bits(
    weights, whole, tmp_path, number, workers
):
    """In an epoch or at its end; with loader processes, which get the signal too.

    It goes on without them: that gives the same batches, which the loader's tests look at.
    """
    arguments = [weights, *LONG, f"--workdir={tmp_path}"]
    run = Run(*arguments, f"--config.dataset.workers={workers}")
    run.read_until("epoch 5/")
    run.send(number)
    assert run.end() == EXIT_CODE, run.output
    assert "Traceback" not in run.output
    assert f"{number.name}: stopping after this step" in run.output
    step = load_newest(tmp_path).step
    assert 10 <= step < 120
    assert f"stopped at step {step} of 120 and saved: the same command goes on there." in run.output
    assert not (tmp_path / "results.json").exists()
    done = in_process("main.py", *SETTINGS, *arguments)
    assert f"going on at step {step} of 120" in done.stdout
    assert_same_end(tmp_path, whole)


def test_a_second_ctrl_c_ends_at_once(weights, tmp_path):
    run = Run(weights, *LONG, f"--workdir={tmp_path}")
    run.read_until("Training coop")  # the first step is compiled now, for seconds
    run.send(signal.SIGINT)
    run.read_until("stopping after this step")
    run.send(signal.SIGINT)
    assert run.end(timeout=60) in (
        -signal.SIGINT,
        EXIT_CODE,
    )  # where the step was over before the second one


def test_ctrl_c_before_there_is_anything_to_save(weights, tmp_path):
    """No traceback, also while modules are imported or data is loaded."""
    done = command("-c", """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # what starts in the background ignores it
sys.argv = ["main.py", *sys.argv[1:]]
from dpt_jax.training import setup as experiment
experiment.load_dataset = lambda *_: os.kill(os.getpid(), signal.SIGINT)
import runpy
runpy.run_path("main.py", run_name="__main__")
""", *SETTINGS, weights, f"--workdir={tmp_path}", check=False)  # fmt: skip
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == "stopped."
    assert "Traceback" not in done.stderr


def test_killed_at_random_moments(weights, whole, tmp_path):
    arguments = [weights, *LONG, f"--workdir={tmp_path}"]
    assert kill_at_random(arguments, kills=3, seed=1, longest=2) >= 2
    in_process("main.py", *SETTINGS, *arguments)
    assert_same_end(tmp_path, whole)


def test_checkpoints_by_the_clock(weights, tmp_path):
    """Every 6 ms is behind most of the six steps here; by steps there would be one, at the end."""
    in_process("main.py", *SETTINGS, weights, f"--workdir={tmp_path}", "--config.train.epochs=3",
            "--config.checkpoint.every_minutes=0.0001", "--config.checkpoint.keep=9")  # fmt: skip
    assert len(list((tmp_path / "checkpoints").iterdir())) >= 3


def test_damage_is_told_and_the_run_goes_on_from_before(whole, weights, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    (workdir / "results.json").unlink()
    newest = max((workdir / "checkpoints").iterdir(), key=lambda folder: int(folder.name))
    files = [file for file in (newest / "prompts").rglob("*") if file.is_file()]
    data = max(files, key=lambda file: file.stat().st_size)
    flipped = bytearray(data.read_bytes())
    flipped[len(flipped) // 2] ^= 4
    data.write_bytes(flipped)
    done = in_process("main.py", "--mode=eval", f"--workdir={workdir}")
    assert f"{newest} is damaged" in done.stderr
    done = in_process("main.py", *SETTINGS, weights, *LONG, f"--workdir={workdir}")
    assert f"moved to {workdir / DAMAGED / '120'}" in done.stderr
    assert "going on at step 119 of 120" in done.stdout
    assert_same_end(workdir, whole)


# A disk that takes small files only, as a full one does: checkpoints do not fit any more.
FULL = """
import resource, runpy, sys
sys.argv = ["main.py", *sys.argv[1:]]
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
runpy.run_path("main.py", run_name="__main__")
"""


def test_a_full_disk_stops_the_run_and_leaves_the_last_good_checkpoint(whole, weights, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    shutil.rmtree(workdir / "checkpoints" / "120")
    before = load_newest(workdir)
    arguments = [*SETTINGS, weights, *LONG, f"--workdir={workdir}"]
    (workdir / "metrics.jsonl").write_text("")  # long by now, and not what this is about
    done = command("-c", FULL, *arguments, check=False, JAX_ENABLE_COMPILATION_CACHE="0")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "cannot be written" in done.stderr
    after = load_newest(workdir)
    assert after.step == before.step
    jax.tree.map(np.testing.assert_array_equal, after.prompts, before.prompts)
    in_process("main.py", *arguments)
    jax.tree.map(
        np.testing.assert_array_equal, load_newest(workdir).prompts, load_newest(whole).prompts
    )


def test_two_processes_on_one_workdir(weights, tmp_path):
    arguments = [*SETTINGS, weights, "--config.train.epochs=1", f"--workdir={tmp_path}"]
    with locked(tmp_path):
        done = command("main.py", *arguments, check=False)
    assert done.returncode == 2
    assert f"{tmp_path} is being trained in by process" in done.stderr
    in_process("main.py", *arguments)


def test_a_step_that_is_not_finite_stops_the_run(weights, tmp_path):
    """The step, its images and the last good checkpoint are named."""
    arguments = [*settings_of("dpt"), weights, "--config.train.epochs=4",
                 "--config.train.visual_lr=1e30",
                 "--config.checkpoint.every_steps=1", f"--workdir={tmp_path}"]  # fmt: skip
    done = in_process("main.py", *arguments, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "not finite at step" in done.stderr
    step = int(done.stderr.partition("not finite at step ")[2].partition(";")[0])
    good = load_newest(tmp_path)
    assert good.step == step - 1
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(good.prompts))
    assert f"last good checkpoint is of step {good.step}" in done.stderr
    named = done.stderr.partition("images of the step: ")[2].partition(". Look")[0].split(", ")
    assert len(named) == 6
    assert set(named) <= set((tmp_path / "train_files.txt").read_text().splitlines())
    # With such steps left out the run goes on from there, and nothing of them is in the prompts.
    done = in_process("main.py", *arguments, "--config.train.skip_nonfinite=True", check=False)
    assert f"were left out, the first is step {step}" in done.stdout
    jax.tree.map(np.testing.assert_array_equal, load_newest(tmp_path).prompts, good.prompts)
    # They are finite, but so large that what they make of an image is not: no result is written.
    assert_refused(done, "the logits of dpt are not finite")
    assert not (tmp_path / "results.json").exists()


def test_resuming_with_other_settings(weights, tmp_path):
    arguments = [*SETTINGS, weights, f"--workdir={tmp_path}"]
    in_process("main.py", *arguments, "--config.train.epochs=1")
    done = in_process(
        "main.py", *arguments, "--config.train.epochs=2", "--config.eval.batch_size=7", check=False
    )
    assert done.returncode == 2
    assert "train.epochs (1 there, 2 now); use them" in done.stderr
    assert "eval.batch_size" not in done.stderr
    done = in_process(
        "main.py",
        *arguments,
        "--config.train.epochs=2",
        "--config.eval.batch_size=7",
        "--allow_changes",
    )
    assert all(
        told in done.stdout
        for told in ("train.epochs (1 there, 2 now)", "eval.batch_size (100 there, 7 now)")
    )
    assert "going on at step 2 of 4" in done.stdout
    done = in_process(
        "main.py",
        *arguments,
        "--config.train.epochs=2",
        "--config.text_prompt.length=5",
        "--allow_changes",
        check=False,
    )
    assert done.returncode == 2
    assert "text_prompt.length (4 there, 5 now); use them, or another --workdir." in done.stderr


def test_a_started_run_needs_no_longer_what_it_started_from(weights, tmp_path):
    """Its own checkpoint has the prompts, in the middle of the training and at its end."""
    first = [*SETTINGS, weights, "--config.train.epochs=1"]
    in_process("main.py", *first, f"--workdir={tmp_path / 'first'}")
    arguments = [
        *first,
        f"--config.init_from={tmp_path / 'first'}",
        f"--workdir={tmp_path / 'second'}",
        "--config.checkpoint.every_steps=1",
    ]
    in_process("main.py", *arguments)
    shutil.rmtree(tmp_path / "first")
    expected = load_newest(tmp_path / "second").prompts
    assert "training is finished" in in_process("main.py", *arguments).stdout
    shutil.rmtree(tmp_path / "second" / "checkpoints" / "2")
    assert "going on at step 1 of 2" in in_process("main.py", *arguments).stdout
    jax.tree.map(np.testing.assert_array_equal, load_newest(tmp_path / "second").prompts, expected)


def test_debug_shows_where(tmp_path):
    done = command(
        "main.py", "--config.train.epochs=0", f"--workdir={tmp_path}", "--debug", check=False
    )
    assert "Traceback" in done.stderr
    assert pathlib.Path(COMPILATION["jax_compilation_cache_dir"]).is_dir()
