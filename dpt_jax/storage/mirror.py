"""Checkpoints in a bucket, and the copies of them on this disk that Orbax writes and reads.

A bucket has no rename, by which a local checkpoint appears as a whole. So the manifest is written
last: without it there is half of a checkpoint, which is not used. The files are those of a local
run, so that folders can be copied from one to the other.
"""

import pathlib
import shutil
import tempfile

from etils import epath

from dpt_jax.runtime import object_store
from dpt_jax.runtime.bucket import BucketPath
from dpt_jax.runtime.transfer import at_once, download, upload
from dpt_jax.storage.manifest import MANIFEST


class Mirror:
    """The checkpoints below a folder of a bucket, by step."""

    def __init__(self, remote: BucketPath) -> None:
        """remote: the folder that has one folder for each step."""
        self._remote = remote
        self._disk = tempfile.TemporaryDirectory(prefix="dpt_jax-")
        self.local = pathlib.Path(self._disk.name)
        self._whole, self._halves = _steps(remote)

    def close(self) -> None:
        """Remove the copies on this disk."""
        self._disk.cleanup()

    def steps(self) -> list[int]:
        """Return the steps that have a whole checkpoint, the newest first."""
        return sorted(self._whole, reverse=True)

    def note(self, step: int) -> None:
        """Count the checkpoint of a step, which host 0 has written or is about to."""
        self._whole.add(step)

    def halves(self) -> list[int]:
        """Return the steps whose upload was interrupted before this process began."""
        return sorted(self._halves)

    def put(self, folder: epath.Path, step: int, keep: int) -> None:
        """Write the files of a complete checkpoint, and remove all but the newest few."""
        if step in self._halves:
            self._remove(step)
        upload(folder, self._remote / str(step), last=MANIFEST)
        self.note(step)
        for old in self.steps()[keep:]:
            self._remove(old)

    def fetch(self, step: int) -> None:
        """Copy a checkpoint to this disk, unless it is there."""
        target = self.local / str(step)
        if not target.exists():
            source = self._remote / str(step)
            download(source, source.objects(), target)

    def set_aside(self, step: int, target: BucketPath) -> None:
        """Move a checkpoint to another folder of the bucket."""
        source = self._remote / str(step)
        start = len(source.prefix.key)

        def copy(key: str) -> None:
            object_store.copy((source / key).object_name, (target / key).object_name)

        at_once(copy, (one.key[start:] for one in source.objects()))
        self._remove(step)

    def drop(self, step: int) -> None:
        """Remove the copy on this disk."""
        shutil.rmtree(self.local / str(step), ignore_errors=True)

    def forget(self, step: int) -> None:
        """Take a checkpoint for gone, which host 0 has moved or is about to."""
        self._whole.discard(step)
        self.drop(step)

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


def whole_steps(remote: BucketPath) -> list[int]:
    """Return the steps below a folder of a bucket that have a whole checkpoint."""
    return list(_steps(remote)[0])


def _steps(remote: BucketPath) -> tuple[set[int], set[int]]:
    """Return the steps whose manifest is there, and the others."""
    start = len(remote.prefix.key)
    places = [one.key[start:].split("/") for one in remote.objects()]
    steps = {int(place[0]) for place in places if len(place) > 1 and place[0].isdecimal()}
    whole = {step for step in steps if [str(step), MANIFEST] in places}
    return whole, steps - whole
