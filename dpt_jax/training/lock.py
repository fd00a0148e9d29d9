"""One training at a time in a workdir."""

import contextlib
import datetime
import fcntl
import os
import platform
from collections.abc import Iterator

from etils import epath

from dpt_jax import distributed
from dpt_jax.errors import UserError
from dpt_jax.io import file_system, is_remote
from dpt_jax.logging import say

LOCK_FILE = ".lock"


class LockedError(UserError):
    """Another process trains in the workdir."""


@contextlib.contextmanager
def locked(workdir: epath.Path) -> Iterator[None]:
    """Make the workdir and keep a second training out of it; host 0 has the lock.

    Raises:
      LockedError: on all hosts, if another process has the lock.
    """
    owner = f"process {os.getpid()} on {platform.node()}"
    lock = _locked_in_bucket if is_remote(workdir) else _locked_on_disk
    refused = None
    with contextlib.ExitStack() as held:
        if distributed.is_first():
            try:
                held.enter_context(lock(workdir, owner))
            except LockedError as reason:
                refused = reason
        if distributed.first_says(refused is not None):
            raise refused or LockedError(f"{workdir} is being trained in by another process.")
        yield


def is_locked(workdir: epath.Path) -> bool:
    """Return whether another process trains in a workdir, as far as can be seen now."""
    file = workdir / LOCK_FILE
    if is_remote(workdir) or not file.exists():
        return file.exists() and not _is_left_behind(file.read_text())
    with open(file) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks
            return False
    return False


@contextlib.contextmanager
def _locked_on_disk(workdir: epath.Path, owner: str) -> Iterator[None]:
    """Lock by flock, which ends with the process, however that ends."""
    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / LOCK_FILE, "a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as reason:
            lock.seek(0)
            raise LockedError(
                f"{workdir} is being trained in by {lock.read().strip() or 'another process'}: "
                "wait for it, stop it, or use another --workdir."
            ) from reason
        except OSError as reason:  # a file system without locks
            say(
                f"{workdir} cannot be locked ({reason}): make sure that no other process trains "
                "there."
            )
        lock.truncate(0)
        lock.write(f"{owner}\n")
        lock.flush()
        yield


@contextlib.contextmanager
def _locked_in_bucket(workdir: epath.Path, owner: str) -> Iterator[None]:
    """Lock by an object that is only written if it does not exist.

    A killed process leaves it behind. The next one removes it if it runs on the same host.
    """
    gcs, file = file_system(workdir), workdir / LOCK_FILE
    now = datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds")
    content = f"{owner} since {now}".encode()
    if file.exists() and _is_left_behind(file.read_text()):
        file.unlink(missing_ok=True)
    try:
        gcs.pipe_file(os.fspath(file), content, mode="create")
    except FileExistsError as reason:
        raise LockedError(
            f"{workdir} is being trained in by {file.read_text()}: wait for it, stop it, or use "
            f"another --workdir; if it has been killed, `gcloud storage rm {file}`."
        ) from reason
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def _is_left_behind(content: str) -> bool:
    """Return whether a lock is of a process of this host that has ended."""
    words = content.split()  # process PID on HOST since …
    if len(words) < 4 or words[3] != platform.node() or not words[1].isdecimal():
        return False
    try:
        os.kill(int(words[1]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return int(words[1]) == os.getpid()  # of a container that was started again
