"""Checkpoints in a bucket, and the copies of them on this disk that Orbax writes and reads.

A bucket has no rename, by which a local checkpoint appears as a whole. So the manifest is written
last: without it there is half of a checkpoint, which is not used. The files are those of a local
run, so that folders can be copied from one to the other.
"""

import contextlib
import pathlib
import shutil
import tempfile

from etils import epath

from dpt_jax.logging import say
from dpt_jax.runtime import object_store
from dpt_jax.runtime.bucket import BucketPath, as_bucket_path
from dpt_jax.runtime.store_errors import StoreError
from dpt_jax.runtime.transfer import at_once, download, upload
from dpt_jax.storage.disk_shelf import Shelf
from dpt_jax.training.manifest import MANIFEST, DamagedError


class Mirror(Shelf):
    """A folder of a bucket with a folder for each step; the root is a copy for this host alone."""

    alone = True

    def __init__(
        self, folder: epath.Path, keep: int, writes: bool, closing: contextlib.ExitStack
    ) -> None:
        """keep, closing: see `shelf.open_shelf`."""
        self._remote, self._keep = as_bucket_path(folder), keep
        self._disk = pathlib.Path(
            closing.enter_context(tempfile.TemporaryDirectory(prefix="dpt_jax-"))
        )
        self.root = epath.Path(self._disk)
        self._failed: StoreError | None = None
        self._whole, self._halves = _steps(self._remote)
        if writes and self._halves:
            steps = ", ".join(map(str, sorted(self._halves)))
            say(
                f"{folder}: of step {steps} there is half of a checkpoint, whose upload was "
                "interrupted; it is not used, and removed when the next one is whole."
            )

    def steps(self) -> list[int]:
        """Return the steps that have a whole checkpoint, the newest first."""
        return sorted(self._whole, reverse=True)

    def fetch(self, step: int) -> None:
        """Copy a checkpoint to this disk, unless it is there.  Raise DamagedError."""
        target = self._disk / str(step)
        if not target.exists():
            source = self._remote / str(step)
            try:
                download(source, source.objects(), target)
            except FileNotFoundError as reason:
                raise DamagedError(f"{source} is damaged (it changed meanwhile)") from reason

    def refetch(self, step: int) -> None:
        """Copy a checkpoint to this disk again."""
        self._drop(step)
        self.fetch(step)

    def put(self, folder: epath.Path, step: int) -> None:
        """Write the files of a complete checkpoint, and remove all others but the newest few."""
        try:
            if step in self._halves:
                self._remove(step)
            upload(folder, self._remote / str(step), last=MANIFEST)
            self.note(step)
            for old in [*self._halves, *self.steps()[self._keep :]]:
                self._remove(old)
        except StoreError as reason:  # in Orbax's thread, which would print its traceback
            self._failed = reason

    def note(self, step: int) -> None:
        """Count a checkpoint that host 0 puts."""
        self._whole.add(step)

    def settle(self) -> None:
        """Raise StoreError where a checkpoint could not be put."""
        if self._failed:
            raise self._failed

    def set_aside(self, step: int, aside: epath.Path) -> None:
        """Copy a checkpoint to another folder of the bucket, and remove it."""
        source, target = self._remote / str(step), as_bucket_path(aside)
        start = len(source.prefix.key)

        def copy(key: str) -> None:
            object_store.copy((source / key).object_name, (target / key).object_name)

        at_once(copy, (one.key[start:] for one in source.objects()))
        self._remove(step)

    def forget(self, step: int) -> None:
        """Take a checkpoint for gone that host 0 sets aside."""
        self._whole.discard(step)
        self._drop(step)

    def _drop(self, step: int) -> None:
        shutil.rmtree(self._disk / str(step), ignore_errors=True)

    def _remove(self, step: int) -> None:
        """Remove a checkpoint, the manifest last: what is left then is removed again some time."""
        folder = self._remote / str(step)
        keys = [one.key for one in folder.objects()]
        manifest = (folder / MANIFEST).object_name
        at_once(
            lambda key: object_store.remove(manifest._replace(key=key)),
            (key for key in keys if key != manifest.key),
        )
        object_store.remove(manifest)
        self._whole.discard(step)
        self._halves.discard(step)


def whole_steps(folder: epath.Path) -> list[int]:
    """Return the steps below a folder of a bucket that have a whole checkpoint."""
    return list(_steps(as_bucket_path(folder))[0])


def _steps(remote: BucketPath) -> tuple[set[int], set[int]]:
    """Return the steps whose manifest is there, and the others."""
    start = len(remote.prefix.key)
    places = [one.key[start:].split("/") for one in remote.objects()]
    steps = {int(place[0]) for place in places if len(place) > 1 and place[0].isdecimal()}
    whole = {step for step in steps if [str(step), MANIFEST] in places}
    return whole, steps - whole
