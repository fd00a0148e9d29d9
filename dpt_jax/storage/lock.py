"""One training at a time in a workdir."""

import contextlib
import fcntl
import os
import platform
from collections.abc import Iterator

from etils import epath

from dpt_jax.errors import UserError
from dpt_jax.runtime import devices
from dpt_jax.runtime.console import say

LOCK_FILE = ".lock"


@contextlib.contextmanager
def locked(workdir: epath.PathLike) -> Iterator[None]:
    """Keep a second training out of a workdir, on host 0.

    The lock ends with the process, however that ends. Raise UserError where another process has it.
    """
    path = os.fspath(workdir)
    if not devices.is_first() or "://" in path:  # a bucket has no locks
        yield
        return
    with open(os.path.join(path, LOCK_FILE), "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as reason:
            lock.seek(0)
            raise UserError(
                f"{workdir} is being trained in by {lock.read().strip() or 'another process'}: "
                "wait for it, stop it, or use another --workdir."
            ) from reason
        except OSError as reason:  # a file system without locks
            say(
                f"{workdir} cannot be locked ({reason}): see to it that no other process "
                "trains there."
            )
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {platform.node()}\n")
        lock.flush()
        yield
