"""Paths as people write them: local, below ~, or gs://."""

import os

from etils import epath

from dpt_jax.errors import UserError


def as_path(name: str | os.PathLike[str]) -> epath.Path:
    """Return the path of a flag, a key or an argument, with ~ expanded.

    Raise UserError for an empty name and for a scheme other than gs://.
    """
    text = os.fspath(name)
    if not text:
        raise UserError("a path is empty: name a file or a folder.")
    scheme, found, _ = text.partition("://")
    if found and scheme != "gs":
        raise UserError(f"{text}: paths are local or begin with gs://, not with {scheme}://.")
    return epath.Path(text if found else os.path.expanduser(text))


def make_folder(folder: epath.Path, what: str) -> epath.Path:
    """Make a folder unless it is there, and return it.

    Raise UserError, which begins with `what`, where it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as reason:
        raise UserError(f"{what}: {folder} cannot be made ({reason}).") from reason
    return folder
