"""One training at a time in a workdir."""

import contextlib
import fcntl
import os
import platform
from collections.abc import Callable, Iterator

from etils import epath

from dpt_jax import distributed
from dpt_jax.errors import UserError
from dpt_jax.io import is_remote
from dpt_jax.logging import say

LOCK_FILE = ".lock"


@contextlib.contextmanager
def locked(workdir: epath.PathLike) -> Iterator[Callable[[], None]]:
    """Keep a second training out of a workdir, on host 0.

    Give a function that raises UserError where the lock was lost, which only one in a bucket can
    be. The lock ends with the process, however that ends; in a bucket, some time after it. Raise
    UserError where another process has it.
    """
    if not distributed.is_first():
        yield lambda: None
    elif is_remote(workdir):
        with _locked_in_bucket(workdir) as check:
            yield check
    else:
        with _locked_on_disk(os.fspath(workdir)):
            yield lambda: None


def is_locked(workdir: epath.Path) -> bool:
    """Return whether another process trains in a workdir, as far as can be seen now."""
    if not (workdir / LOCK_FILE).exists():
        return False
    if is_remote(workdir):
        from dpt_jax.runtime.bucket import as_bucket_path
        from dpt_jax.storage.bucket_lock import is_alive

        return is_alive(as_bucket_path(workdir), LOCK_FILE)
    with open(workdir / LOCK_FILE) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks
            return False
    return False


@contextlib.contextmanager
def _locked_in_bucket(workdir: epath.PathLike) -> Iterator[Callable[[], None]]:
    from dpt_jax.runtime.bucket import as_bucket_path
    from dpt_jax.runtime.store_errors import StoreError
    from dpt_jax.storage.bucket_lock import BucketLock

    lock = BucketLock(as_bucket_path(workdir), LOCK_FILE)
    lock.acquire()
    try:
        yield lock.check
    except BaseException as error:
        # What the store has failed at it would fail at again.
        lock.release(remove=not isinstance(error.__cause__ or error, StoreError))
        raise
    lock.release()


@contextlib.contextmanager
def _locked_on_disk(workdir: str) -> Iterator[None]:
    with open(os.path.join(workdir, LOCK_FILE), "a+") as lock:
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
