"""One training at a time in a workdir of a bucket, which has no locks of its own.

The lock is an object that a process makes only if there is none. It names its owner, who writes it
again and again; the object's generation tells each of these writings. An owner that has been silent
for long has died, and the next process takes the lock over. One that was only cut off finds the
generation changed, and may write nothing more.
"""

import contextlib
import json
import os
import platform
import threading
import time
import uuid

from dpt_jax.errors import UserError
from dpt_jax.logging import say
from dpt_jax.runtime import object_store
from dpt_jax.runtime.bucket import BucketPath
from dpt_jax.runtime.store_errors import StoreError

REFRESH_SECONDS = 15.0
SILENT_SECONDS = 60.0  # after which an owner is taken for dead
LOOK_SECONDS = 2.0


class BucketLock:
    """The lock of a workdir, which this process holds from `acquire` to `release`."""

    def __init__(self, workdir: BucketPath, name: str) -> None:
        """name: of the object in the workdir."""
        self._workdir, self._object = workdir, (workdir / name).object_name
        owner = f"process {os.getpid()} on {platform.node()}"
        self._content = json.dumps({"owner": owner, "id": uuid.uuid4().hex}).encode()
        self._generation, self._lost = 0, False
        self._writing = threading.Lock()
        self._released = threading.Event()
        self._refresher = threading.Thread(target=self._refresh, daemon=True, name="bucket lock")

    def acquire(self) -> None:
        """Return when the lock is this process's.

        If there is an owner, wait for its next sign of life. Raise UserError where one comes, and
        take the lock over where none does.
        """
        first: int | None = None
        while not self._write(0):
            found = object_store.describe(self._object)
            if found is None:
                continue
            (_, _, generation), silent = found
            if silent > SILENT_SECONDS and self._write(generation):
                say(f"{self._workdir}: its lock is taken over, after {silent:.0f} s of silence.")
                break
            if first is None:
                first = generation
                say(
                    f"{self._workdir} is locked by {self._named()}: waiting for a sign of its "
                    f"life, {SILENT_SECONDS:.0f} s at most."
                )
            elif first != generation:
                raise UserError(
                    f"{self._workdir} is being trained in by {self._named()}: wait for it, stop "
                    "it, or use another --workdir."
                )
            time.sleep(LOOK_SECONDS)
        self._refresher.start()

    def check(self, patience: float | None = None) -> None:
        """Raise UserError where another process has taken the lock over.

        patience: seconds for which the store may fail, None for the usual time.
        """
        with self._writing:
            self._lost = self._lost or not self._write(self._generation, patience)
            if self._lost:
                raise UserError(
                    f"{self._workdir}: {self._named()} has taken this run over, while this "
                    "process gave no sign of life; it ends here."
                )

    def release(self, remove: bool = True) -> None:
        """Stop to give signs of life; remove the lock, or leave it to its silence."""
        self._released.set()
        self._refresher.join()
        if remove and not self._lost:
            with contextlib.suppress(StoreError):
                object_store.remove(self._object, self._generation, patience=0)

    def _refresh(self) -> None:
        """Give signs of life until the lock is released, or somebody else's."""
        while not self._released.wait(REFRESH_SECONDS):
            try:
                self.check(patience=0)
            except StoreError:
                continue  # those who need the store now will say so
            except UserError:
                return  # `check` says so again, before the next thing is written

    def _write(self, generation: int, patience: float | None = None) -> bool:
        """Write the lock where it has this generation; return whether it is this process's."""
        written = object_store.write_if(self._object, self._content, generation, patience)
        if written is None and self._read() == self._content:
            # It was written, and the store's answer was lost.
            found = object_store.describe(self._object)
            written = found and found[0].generation
        self._generation = written or self._generation
        return written is not None

    def _read(self) -> bytes:
        try:
            return object_store.read(self._object)
        except FileNotFoundError:
            return b""

    def _named(self) -> str:
        """Return the owner in words."""
        try:
            return str(json.loads(self._read())["owner"])
        except (ValueError, KeyError, TypeError):
            return "another process"


def is_alive(workdir: BucketPath, name: str) -> bool:
    """Return whether a lock has an owner that has given a sign of life."""
    found = object_store.describe((workdir / name).object_name)
    return found is not None and found[1] <= SILENT_SECONDS
