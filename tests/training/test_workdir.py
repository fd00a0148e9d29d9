"""One training at a time in a workdir."""

import os
import platform
import subprocess
import sys

import pytest

from dpt_jax.io import as_path
from dpt_jax.training.workdir import LOCK_FILE, LockedError, is_locked, locked


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
