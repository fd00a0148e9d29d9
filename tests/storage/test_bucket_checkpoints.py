"""Checkpoints of a run in a bucket: whole or not used, kept few, and copied to and from disks."""

import jax
import numpy as np
import pytest

from dpt_jax.errors import UserError
from dpt_jax.io import as_path
from dpt_jax.runtime import store_errors
from dpt_jax.runtime.transfer import upload
from dpt_jax.storage.bucket_lock import BucketLock
from dpt_jax.training.checkpoints import Checkpoints, load_newest
from dpt_jax.training.manifest import MANIFEST
from dpt_jax.training.newest import newest

PROMPTS = {"text": {"context": np.arange(6, dtype=np.float32).reshape(1, 2, 3)}}
TRAINING = {"momentum": PROMPTS, "totals": np.zeros(3, np.float32)}


def at(step):
    return jax.tree.map(lambda x: x + step, PROMPTS)


def save(workdir, *steps, keep=2):
    with Checkpoints(workdir, keep, create=True) as checkpoints:
        for step in steps:
            checkpoints.save(step, at(step), {"epoch": step}, TRAINING)
        checkpoints.wait()


def assert_goes_on(workdir, step):
    """The run goes on at this step, and its prompts are those of it."""
    with Checkpoints(workdir, create=True) as checkpoints:
        saved, _ = checkpoints.resume(PROMPTS, TRAINING)
    assert (saved.step, saved.meta) == (step, {"epoch": step})
    jax.tree.map(np.testing.assert_array_equal, saved.prompts, at(step))
    assert load_newest(workdir).step == newest(as_path(workdir)).step == step


def keys(workdir):
    return [one.key for one in as_path(f"{workdir}/checkpoints").objects()]


def of_step(workdir, step):
    return [key for key in keys(workdir) if key.split("/")[2] == str(step)]


def test_the_newest_few_are_kept(bucket, store):
    workdir = f"{bucket}/run"
    save(workdir, 1, 2, 3)
    assert {key.split("/")[2] for key in keys(workdir)} == {"2", "3"}
    removed = len(of_step(workdir, 2))
    before = len(store.requests())
    with Checkpoints(workdir, create=True) as checkpoints:
        assert checkpoints.steps() == [3, 2]
        checkpoints.save(4, at(4), {"epoch": 4}, TRAINING)
        checkpoints.wait()
    # One listing, the files, and the removal of step 2 after a listing of it.
    asked = [method for method, _ in store.requests()[before:]]
    saved = len(of_step(workdir, 4))  # Orbax does not always divide the arrays into as many files
    assert (asked.count("GET"), asked.count("POST"), asked.count("DELETE")) == (2, saved, removed)
    assert_goes_on(workdir, 4)


def test_half_of_a_checkpoint_is_not_used(bucket, capsys):
    """Whatever part of an upload was done: the run goes on at the checkpoint before it."""
    workdir = f"{bucket}/run"
    save(workdir, 1, 2)
    newest_files = [key for key in keys(workdir) if "/2/" in key]
    assert newest_files[-1].split("/")[3] != MANIFEST  # it is not the order of the names
    (as_path(workdir) / "checkpoints" / "2" / MANIFEST).unlink()
    for key in newest_files[1:4]:
        (as_path(bucket) / key).unlink(missing_ok=True)
    assert_goes_on(workdir, 1)
    assert "of step 2 there is half of a checkpoint" in capsys.readouterr().out
    save(workdir, 2)
    assert_goes_on(workdir, 2)
    assert sorted(key for key in keys(workdir) if "/2/" in key) != []


def test_half_of_a_checkpoint_is_removed(bucket, capsys):
    """Also where its step is never saved again; until then nothing of it is touched."""
    workdir = f"{bucket}/run"
    save(workdir, 1, 2)
    (as_path(workdir) / "checkpoints" / "2" / MANIFEST).unlink()
    left = keys(workdir)
    assert_goes_on(workdir, 1)
    assert "it is not used, and removed when the next one is whole" in capsys.readouterr().out
    assert keys(workdir) == left
    save(workdir, 3)
    assert {key.split("/")[2] for key in keys(workdir)} == {"1", "3"}
    capsys.readouterr()
    assert_goes_on(workdir, 3)
    assert "half" not in capsys.readouterr().out


def test_damage_is_set_aside(bucket, capsys):
    workdir = f"{bucket}/run"
    save(workdir, 1, 2)
    (data,) = [key for key in keys(workdir) if key.endswith("2/prompts/manifest.ocdbt")]
    (as_path(bucket) / data).write_bytes(b"something else")
    assert load_newest(workdir).step == 1
    assert_goes_on(workdir, 1)
    told = capsys.readouterr().err
    assert f"{workdir}/checkpoints/2 is damaged (prompts/manifest.ocdbt is not what was" in told
    assert f"moved to {workdir}/damaged/2" in told
    assert (as_path(workdir) / "damaged" / "2" / MANIFEST).is_file()
    save(workdir, 2)
    assert_goes_on(workdir, 2)


def test_a_local_run_is_copied_to_a_bucket(bucket, tmp_path):
    """The files are the same ones, so `gcloud storage cp -r` does it."""
    save(tmp_path / "run", 1, 2)
    for step in ("1", "2"):
        folder = f"checkpoints/{step}"
        upload(tmp_path / "run" / folder, as_path(f"{bucket}/run/{folder}"), last=MANIFEST)
    assert_goes_on(f"{bucket}/run", 2)


def test_a_store_that_ends_in_an_upload(bucket, monkeypatch):
    workdir = f"{bucket}/run"
    save(workdir, 1)
    monkeypatch.setattr(store_errors, "PATIENCE_SECONDS", 0.2)
    with Checkpoints(workdir, create=True) as checkpoints:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:1")
        checkpoints.save(2, at(2), {"epoch": 2}, TRAINING)
        with pytest.raises(UserError, match=r"a checkpoint cannot be written .*cannot be reached.*"
                           r"the last whole one is of step 1. Give the same"):  # fmt: skip
            checkpoints.wait()
    monkeypatch.undo()
    assert_goes_on(workdir, 1)


@pytest.fixture
def quick(monkeypatch):
    """Locks whose owners are taken for dead soon."""
    for name, seconds in {"REFRESH": 0.1, "SILENT": 1.5, "LOOK": 0.1}.items():
        monkeypatch.setattr(f"dpt_jax.storage.bucket_lock.{name}_SECONDS", seconds)


def lock(bucket):
    return BucketLock(as_path(f"{bucket}/run"), ".lock")


def test_a_lock_keeps_others_out_while_its_owner_lives(bucket, quick, capsys):
    first, second = lock(bucket), lock(bucket)
    first.acquire()
    with pytest.raises(UserError, match=r"is being trained in by process .*: wait for it"):
        second.acquire()
    assert "waiting for a sign of its life" in capsys.readouterr().out
    first.check()
    first.release()
    second.acquire()
    second.release()
    assert not as_path(f"{bucket}/run/.lock").exists()


def test_a_lock_is_taken_over_from_one_that_is_silent(bucket, quick, capsys):
    """As of a machine that is gone; and of one that comes back, which may write nothing more."""
    first, second = lock(bucket), lock(bucket)
    first.acquire()
    first._released.set()  # it gives no more signs of life
    second.acquire()
    assert "its lock is taken over, after" in capsys.readouterr().out
    with pytest.raises(UserError, match="has taken this run over"):
        first.check()
    first.release()
    assert as_path(f"{bucket}/run/.lock").exists()
    second.check()
    second.release()
