"""What plain CLIP makes of test images, in files that processes of this machine share.

Files are written whole, and begin with a digest of their content and of all that it depends on. A
file that does not fit its digest, for whatever reason, is none, and is made again.
"""

import contextlib
import fcntl
import hashlib
import io
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dpt_jax.evaluation.kept import KeptBatch
from dpt_jax.errors import UserError
from dpt_jax.io import cache_folder, write_whole
from dpt_jax.logging import say

COLUMNS = ("label", "index", "weight")  # of the images that a batch has, without padding
DIGEST_BYTES = hashlib.sha256().digest_size


class KeptOnDisk:
    """Features by key, up to a limit: those that were used last are kept."""

    def __init__(self, limit: int, folder: pathlib.Path | None = None) -> None:
        """limit: bytes of all files together. folder: where, by default in the cache folder."""
        self._limit, self._folder = limit, folder or cache_folder() / "features"

    def get(self, key: str) -> list[KeptBatch] | None:
        """Return the batches that are kept under a key, without pixels; None where none are."""
        file = self._file(key)
        try:
            content = file.read_bytes()
            os.utime(file)
        except OSError:
            return None
        digest, packed = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        return _unpack(packed) if digest == _digest(key, packed) else None

    def keep(self, key: str, batches: Sequence[KeptBatch]) -> None:
        """Keep batches under a key, and remove what was not used for longest beyond the limit.

        What cannot be written is not kept, and that is said.
        """
        packed = _pack(batches)
        if len(packed) > self._limit:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._alone():
                write_whole(self._file(key), _digest(key, packed) + packed)
                self._make_room()
        except (OSError, UserError) as reason:
            say(f"features of test images are not kept in {self._folder} ({reason}).")

    def _file(self, key: str) -> pathlib.Path:
        return self._folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Let no other process write within."""
        with open(self._folder / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _make_room(self) -> None:
        """Remove files, with what a process that was killed has left, until all fit."""
        files = [file for file in self._folder.iterdir() if file.name != ".lock"]
        newest_first = sorted(files, key=lambda file: file.stat().st_mtime_ns, reverse=True)
        total = 0
        for file in newest_first:
            total += file.stat().st_size
            if total > self._limit:
                file.unlink()


def _digest(key: str, packed: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b"\0" + packed).digest()


def _pack(batches: Sequence[KeptBatch]) -> bytes:
    """Return the batches as a file of arrays: columns one after the other, and their lengths."""
    arrays: dict[str, Any] = {
        name: np.concatenate([one.known[name] for one in batches]) for name in COLUMNS
    }
    arrays["lengths"] = np.array([len(one.known["label"]) for one in batches])
    arrays["features"] = np.stack([np.asarray(one.features) for one in batches])
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def _unpack(packed: bytes) -> list[KeptBatch]:
    with np.load(io.BytesIO(packed)) as arrays:
        ends = np.cumsum(arrays["lengths"])[:-1]
        columns = {name: np.split(arrays[name], ends) for name in COLUMNS}
        features = arrays["features"]
    return [
        KeptBatch({name: columns[name][i] for name in COLUMNS}, None, own)
        for i, own in enumerate(features)
    ]
