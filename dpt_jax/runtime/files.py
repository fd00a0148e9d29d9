"""Paths as people write them: local, below ~, or gs://."""

import os
import pathlib
from typing import cast

from etils import epath

from dpt_jax.errors import UserError


def as_path(name: str | os.PathLike[str]) -> epath.Path:
    """Return the path of a flag, a key or an argument, with ~ expanded.

    A local path is pathlib's, which has the methods of epath's and more. Raise UserError for an
    empty name and for a scheme other than gs://.
    """
    text = os.fspath(name)
    if not text:
        raise UserError("a path is empty: name a file or a folder.")
    scheme, found, _ = text.partition("://")
    if found and scheme != "gs":
        raise UserError(f"{text}: paths are local or begin with gs://, not with {scheme}://.")
    if found:
        return epath.Path(text)
    return cast(epath.Path, pathlib.Path(text).expanduser())


def size_of(file: epath.Path) -> int:
    """Return the bytes of a file, local or in a bucket."""
    return len(file.read_bytes())


def as_local_path(name: str | os.PathLike[str], flag: str) -> epath.Path:
    """Return a path that runs are kept at.  Raise UserError for gs://, where they cannot be yet."""
    path = as_path(name)
    if "://" in str(name):
        raise UserError(
            f"{flag}: {name} is in a bucket, where runs cannot be kept yet: name a local folder, "
            "or one where the bucket is mounted."
        )
    return path


def make_folder(folder: epath.Path, what: str) -> epath.Path:
    """Make a folder unless it is there, and return it.

    Raise UserError, which begins with `what`, where it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as reason:
        raise UserError(f"{what}: {folder} cannot be made ({reason}).") from reason
    return folder
