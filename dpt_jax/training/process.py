"""The training process: the lock on its workdir, and signals that stop it."""

import contextlib
import fcntl
import os
import platform
import signal
import threading
import types
from collections.abc import Iterator

import jax
from etils import epath
from jax.experimental import multihost_utils

from dpt_jax import distributed
from dpt_jax.errors import UserError
from dpt_jax.io import file_system, is_remote
from dpt_jax.logging import say

LOCK_FILE = ".lock"
# EX_TEMPFAIL of sysexits.h: stopped and saved, and the same command resumes.
EXIT_CODE = 75


class LockedError(UserError):
    """Another process is training in the workdir."""


@contextlib.contextmanager
def locked(workdir: epath.Path) -> Iterator[None]:
    """Create the workdir and lock it against a second training; host 0 holds the lock.

    Raise LockedError on all hosts if another process holds it.
    """
    file, holder = workdir / LOCK_FILE, ""
    with contextlib.ExitStack() as held:
        if distributed.is_first():
            lock = _lock_in_bucket if is_remote(workdir) else _lock_on_disk
            holder = lock(file, f"process {os.getpid()} on {platform.node()}", held)
        if distributed.first_says(bool(holder)):
            by_hand = f"; if it was killed, `gcloud storage rm {file}`" if is_remote(file) else ""
            raise LockedError(
                f"{workdir} is in use by {holder or 'another training process'}: wait for it, stop "
                f"it, or use another --workdir{by_hand}."
            )
        yield


def is_locked(workdir: epath.Path) -> bool:
    """Return whether another process seems to be training in a workdir."""
    file = workdir / LOCK_FILE
    if not file.exists():
        return False
    if is_remote(workdir):
        return not _is_left_behind(file.read_text())
    with open(file) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as reason:
            return isinstance(reason, BlockingIOError)  # others: a file system without locks
    return False


def _lock_on_disk(file: epath.Path, owner: str, held: contextlib.ExitStack) -> str:
    """Lock with flock, which ends with the process; return who has the lock, "" if it is ours."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = held.enter_context(file.open("a+", encoding="utf-8"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        return lock.read().strip() or "another training process"
    except OSError as reason:  # a file system without locks
        say(f"{file} cannot be locked ({reason}): make sure that no other process trains here.")
    lock.truncate(0)
    lock.write(f"{owner}\n")
    lock.flush()
    return ""


def _lock_in_bucket(file: epath.Path, owner: str, held: contextlib.ExitStack) -> str:
    """Lock with an object, which a killed process leaves behind; return as `_lock_on_disk`."""
    if file.exists() and _is_left_behind(file.read_text()):
        file.unlink(missing_ok=True)
    try:
        file_system(file).pipe_file(os.fspath(file), owner.encode(), mode="create")
    except FileExistsError:
        return file.read_text()
    held.callback(file.unlink, missing_ok=True)
    return ""


def _is_left_behind(owner: str) -> bool:
    """Return whether a lock is from a process on this host that has ended."""
    words = owner.split()  # process PID on HOST
    if words[3:4] != [platform.node()]:
        return False
    with contextlib.suppress(PermissionError):  # of another user
        try:
            os.kill(int(words[1]), 0)
        except ProcessLookupError:
            return True
    return int(words[1]) == os.getpid()  # from before a container restart, with the same id


class Stopped(SystemExit):
    """The run was asked to stop, and has saved."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class StopRequest(contextlib.ExitStack):
    """A context in which SIGTERM and SIGINT request a stop; a second SIGINT ends the process.

    On several hosts, a SIGTERM to any of them stops all after the same step. JAX's preemption
    service handles it, and a SIGINT is passed on to that.
    """

    def __init__(self) -> None:
        super().__init__()
        self._asked = self._agreed = False
        signals = [signal.SIGINT] if jax.process_count() > 1 else [signal.SIGINT, signal.SIGTERM]
        # Python allows signal handlers in the main thread only.
        for number in signals if threading.current_thread() is threading.main_thread() else ():
            self.callback(signal.signal, number, signal.signal(number, self._ask))

    def _ask(self, number: int, _: types.FrameType | None) -> None:
        # The next SIGINT ends the process at once.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
        self._asked = True
        name = signal.Signals(number).name
        # Not by print, which the signal may have interrupted.
        os.write(2, f"{name}: stopping after this step (Ctrl-C again stops at once).\n".encode())

    def __bool__(self) -> bool:
        """Return whether this process was asked to stop."""
        return self._asked

    def after(self, step: int) -> bool:
        """Return whether the run stops after this step; all hosts must call it after every step."""
        if jax.process_count() == 1:
            return self._asked
        # This is true only once.
        self._agreed = self._agreed or multihost_utils.reached_preemption_sync_point(step)
        return self._agreed
