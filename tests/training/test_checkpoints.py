"""Checkpoints and the lock of a workdir: damage, other errors, and what is resumed."""

import errno
import os
import platform
import shutil
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from dpt_jax.io import as_path, file_system
from dpt_jax.training.checkpoints import DAMAGED, FOLDER, Checkpoints, load_newest, newest, steps_of
from dpt_jax.training.workdir import LOCK_FILE, LockedError, is_locked, locked
from tests.helpers.commands import refused

PROMPTS = {
    "text": {"context": np.arange(6, dtype=np.float32).reshape(1, 2, 3)},
    "visual": {"tokens": np.ones((2, 2), np.float32)},
}


def prompts_of(step):
    return jax.tree.map(lambda x: x + np.float32(step), PROMPTS)


def training_of(step):
    return {"momentum": prompts_of(step), "totals": np.full(3, step, np.float32)}


def written(workdir, steps=(1, 2)):
    with Checkpoints(workdir) as checkpoints:
        for step in steps:
            checkpoints.save(step, prompts_of(step), {"epoch": step}, training_of(step))
        checkpoints.wait()
    return workdir


def resume(workdir):
    """Return the step at which a run resumes; check that its trees are those that were saved."""
    with Checkpoints(workdir) as checkpoints:
        saved = checkpoints.resume()
    jax.tree.map(np.testing.assert_array_equal, saved.prompts, prompts_of(saved.step))
    jax.tree.map(np.testing.assert_array_equal, saved.training, training_of(saved.step))
    assert saved.meta == {"epoch": saved.step}
    return saved.step


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    return written(tmp_path_factory.mktemp("two"))


@pytest.fixture
def copied(two_steps, tmp_path):
    return shutil.copytree(two_steps, tmp_path / "run")


def files_of(workdir):
    return sorted(path.relative_to(workdir) for path in workdir.rglob("*"))


def test_what_is_saved_last_is_the_newest(tmp_path):
    """Also if a run is extended after its classifier's steps were counted."""
    run = written(tmp_path / "run", steps=(2, 302))
    assert resume(written(run, steps=(3,))) == 3


def test_the_newest_few_are_kept(workdir):
    written(workdir, steps=(1, 2, 3))
    assert steps_of(workdir / FOLDER) == [3, 2]
    saved = load_newest(workdir)
    assert (saved.step, saved.digest) == (newest(workdir).step, newest(workdir).digest)
    assert resume(workdir) == 3


def test_a_damaged_checkpoint_is_moved_aside_and_written_again(workdir, capsys):
    written(workdir)
    gcs = file_system(workdir)
    data = max(gcs.find(f"{workdir}/checkpoints/2/prompts/d"), key=gcs.size)
    flipped = bytearray(gcs.cat_file(data))
    flipped[len(flipped) // 2] ^= 4
    gcs.pipe_file(data, bytes(flipped))
    assert load_newest(workdir).step == 1
    assert resume(workdir) == 1
    assert f"{workdir / DAMAGED / '2'}" in capsys.readouterr().err
    assert (workdir / DAMAGED / "2").is_dir()
    written(workdir, steps=(2,))
    assert resume(workdir) == 2


def test_half_a_checkpoint_in_a_bucket_is_not_one(bucket):
    """Its upload was interrupted; it is written again."""
    workdir = written(as_path(bucket) / "run")
    (workdir / "checkpoints" / "2" / "commit_success.txt").unlink()
    assert load_newest(workdir).step == 1
    assert resume(workdir) == 1
    written(workdir, steps=(2,))
    assert resume(workdir) == 2


def test_without_a_whole_checkpoint_nothing_is_moved(copied):
    for step in ("1", "2"):
        (copied / "checkpoints" / step / "meta" / "metadata").write_text("{")
    before = files_of(copied)
    for _ in range(2):
        refused(f"none of the 2 .*{copied}.* is intact", resume, copied)
    refused("is intact", load_newest, copied)
    assert files_of(copied) == before


@pytest.mark.parametrize(
    "failure",
    [
        PermissionError(errno.EACCES, "denied"),
        MemoryError(),
        # Of TensorStore, which does not say whether a file is damaged or the system refused it.
        ValueError("NOT_FOUND: PERMISSION_DENIED"),
    ],
)
def test_what_is_not_damage_moves_nothing(copied, monkeypatch, failure):
    """Nor is an older checkpoint taken."""
    before, data = files_of(copied), next(copied.glob("checkpoints/2/prompts/**/d/*"))
    restore, read_bytes = ocp.StandardCheckpointer.restore, type(copied).read_bytes

    def fail(checkpointer, folder, *rest, **options):
        if folder.parent.name == "2":
            raise failure
        return restore(checkpointer, folder, *rest, **options)

    def refuse(file):
        if file == data and isinstance(failure, ValueError):
            raise PermissionError(errno.EACCES, "Permission denied")
        return read_bytes(file)

    with Checkpoints(copied) as checkpoints, monkeypatch.context() as patch:
        patch.setattr(ocp.StandardCheckpointer, "restore", fail)
        patch.setattr(type(copied), "read_bytes", refuse)
        for read in (checkpoints.resume, lambda: load_newest(copied)):
            refused(str(copied), read)
    assert files_of(copied) == before


def test_prompts_without_a_training_state_are_not_resumed(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, PROMPTS, {})
        checkpoints.wait()
    assert load_newest(tmp_path).step == 1
    refused("init_from", resume, tmp_path)


def test_a_path_of_any_characters(tmp_path):
    """Orbax would take such a path for a pattern, and lose what it writes there."""
    assert resume(written(tmp_path / "lr[0.01]" / "run", steps=(1,))) == 1


def test_on_a_disk(tmp_path):
    with locked(tmp_path / "run"):
        assert is_locked(tmp_path / "run")
        says = f"{tmp_path}.*process {os.getpid()}"
        with pytest.raises(LockedError, match=says), locked(tmp_path / "run"):
            pass
    assert not is_locked(tmp_path / "run")
    with locked(tmp_path / "run"):
        pass


def owned_by(workdir, process, host):
    (workdir / LOCK_FILE).write_text(f"process {process} on {host} since 2026-01-01")


@pytest.mark.process
def test_in_a_bucket(bucket):
    workdir = as_path(bucket) / "run"
    with locked(workdir):
        assert f"process {os.getpid()}" in (workdir / LOCK_FILE).read_text()
    assert not (workdir / LOCK_FILE).exists()
    owned_by(workdir, 1, "another-host")
    assert is_locked(workdir)
    says = f"another-host.*gcloud storage rm {workdir}/{LOCK_FILE}"
    with pytest.raises(LockedError, match=says), locked(workdir):
        pass
    # Another process of this host has it, and then has been killed.
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        owned_by(workdir, process.pid, platform.node())
        assert is_locked(workdir)
        with pytest.raises(LockedError), locked(workdir):
            pass
        process.kill()
    assert not is_locked(workdir)
    with locked(workdir):
        pass
