"""A stopped, killed or damaged run, given the same command again, ends with the same bits.

Two hosts are in tests/test_distributed.py.
"""

import shutil
import signal

import pytest

from dpt_jax.io import as_path
from dpt_jax.training import setup
from dpt_jax.training.checkpoints import DAMAGED, load_newest
from dpt_jax.training.process import EXIT_CODE
from tests.helpers.commands import assert_refused, command, in_process
from tests.helpers.configs import small_flags
from tests.helpers.runs import SETTINGS, Run, assert_same_end

pytestmark = [pytest.mark.compiles, pytest.mark.process]

LONG = ["--config.train.epochs=60", "--config.checkpoint.every_steps=7"]  # 120 steps, seconds long


@pytest.fixture(scope="module")
def settings(clip_dir):
    return [f"--config.clip.weights={clip_dir}", *LONG]


@pytest.fixture(scope="module")
def whole(settings, made_once):
    flags = [*SETTINGS, *settings]
    return made_once("whole", lambda workdir: in_process("main.py", *flags, f"--workdir={workdir}"))


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_stopped(settings, whole, tmp_path, number):
    """With a loader process, which gets the signal too."""
    arguments = [*settings, f"--workdir={tmp_path}"]
    run = Run(*arguments, "--config.dataset.workers=1")
    run.read_until("epoch 5/")
    run.send(number)
    assert run.end() == EXIT_CODE, run.output
    assert "Traceback" not in run.output
    assert 10 <= load_newest(tmp_path).step < 120
    assert not (tmp_path / "results.json").exists()
    in_process("main.py", *SETTINGS, *arguments)
    assert_same_end(tmp_path, whole)


def test_killed_in_a_bucket_on_a_machine_that_loses_its_disk(settings, whole, bucket, tmp_path):
    arguments = [*settings, f"--workdir={bucket}/runs/one"]
    disk = tmp_path / "disk"
    disk.mkdir()
    run = Run(*arguments, TMPDIR=str(disk), XDG_CACHE_HOME=str(disk / "cache"))
    run.read_until("epoch 30/")
    run.send(signal.SIGKILL)
    run.end()
    shutil.rmtree(disk)
    workdir = as_path(f"{bucket}/runs/one")
    assert load_newest(workdir).step >= 49
    in_process("main.py", *SETTINGS, *arguments)
    assert_same_end(workdir, whole)
    files = [{file.name.partition(".tfevents")[0] for file in run.iterdir()}
             for run in (workdir, whole)]  # fmt: skip
    assert files[0] == files[1] - {".lock"}


def test_damaged(settings, whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    (workdir / "results.json").unlink()
    (data,) = (workdir / "checkpoints" / "120" / "prompts" / "d").iterdir()
    data.write_bytes(data.read_bytes()[:-1])
    done = in_process("main.py", *SETTINGS, *settings, f"--workdir={workdir}")
    assert f"{workdir / DAMAGED / '120'}" in done.stderr
    assert_same_end(workdir, whole)


# From the first checkpoint on, a disk that only takes small files, like a full one.
FULL = """
import resource, runpy, sys
from dpt_jax.training.checkpoints import Checkpoints

save = Checkpoints.save

def fill(*arguments):
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
    save(*arguments)

Checkpoints.save = fill
sys.argv = ["main.py", *sys.argv[1:]]
runpy.run_path("main.py", run_name="__main__")
"""


@pytest.mark.slow
def test_a_full_disk(settings, whole, tmp_path):
    """The last good checkpoint stays; with room again, the same command resumes there."""
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    shutil.rmtree(workdir / "checkpoints" / "120")
    arguments = [*SETTINGS, *settings, f"--workdir={workdir}"]
    done = command("-c", FULL, *arguments, check=False)
    assert_refused(done, str(workdir))
    assert load_newest(workdir).step == 119
    in_process("main.py", *arguments)
    assert_same_end(workdir, whole)


def test_checkpoints_by_the_clock(clip_dir, tmp_path):
    """Every 6 ms means after most of the six steps; by steps there would be one, at the end."""
    own = {"checkpoint__every_minutes": 0.0001, "checkpoint__keep": 9, "train__epochs": 3}
    flags = [*SETTINGS, *small_flags(clip_dir, **own), f"--workdir={tmp_path}"]
    in_process("main.py", *flags)
    assert len(list((tmp_path / "checkpoints").iterdir())) >= 3


def test_a_started_run_no_longer_needs_what_it_started_from(clip_dir, tmp_path):
    """Its own checkpoint has the prompts, in the middle of the training and at its end."""
    first = [*SETTINGS, f"--config.clip.weights={clip_dir}", "--config.train.epochs=1"]
    in_process("main.py", *first, f"--workdir={tmp_path / 'first'}")
    second = tmp_path / "second"
    arguments = [*first, f"--config.init_from={tmp_path / 'first'}", f"--workdir={second}",
                 "--config.checkpoint.every_steps=1"]  # fmt: skip
    in_process("main.py", *arguments)
    shutil.rmtree(tmp_path / "first")
    expected = load_newest(second).digest
    in_process("main.py", *arguments)
    shutil.rmtree(second / "checkpoints" / "2")
    in_process("main.py", *arguments)
    assert load_newest(second).digest == expected


def test_ctrl_c_before_there_is_anything_to_save(settings, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(setup, "load_dataset", interrupt)
    done = in_process("main.py", *SETTINGS, *settings, f"--workdir={tmp_path}", check=False)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
