"""Paths as people write them: local, below ~, or gs://."""

import codecs
import contextlib
import os
import pathlib
import tempfile
import uuid
from collections.abc import Iterator
from typing import cast

from etils import epath

from dpt_jax.errors import UserError
from dpt_jax.runtime.bucket import (
    BUCKETS,
    Entry,
    bucket_path,
    known_generations,
    known_listing,
    scan,
)

SCHEME = BUCKETS.removesuffix("//")
# What a server, or Git without its large files, delivers instead of a file.
STAND_INS = {
    b"version https://git-lfs": "a Git LFS pointer: run `git lfs pull` in its folder",
    b"<": "an HTML or XML page: the download failed, so download it again",
}


def as_path(name: str | os.PathLike[str]) -> epath.Path:
    """Return the path of a flag, a key or an argument, with ~ expanded.

    A local path is pathlib's, which has the methods of epath's and more; one in a bucket is a
    `bucket.BucketPath`. Raise UserError for an empty name and for a scheme other than gs://.
    """
    text = os.fspath(name)
    if not text:
        raise UserError("a path is empty: name a file or a folder.")
    scheme, found, _ = text.partition("://")
    if found and f"{scheme}://" != BUCKETS:
        raise UserError(f"{text}: paths are local or begin with {BUCKETS}, not with {scheme}://.")
    if found:
        return bucket_path(text)
    if text.startswith(SCHEME):  # also what pathlib makes of gs://
        path = text.removeprefix(SCHEME).lstrip("/")
        raise UserError(f"{text}: paths in a bucket begin with two slashes: write {BUCKETS}{path}.")
    return cast(epath.Path, pathlib.Path(text).expanduser())


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is in a bucket."""
    return os.fspath(path).startswith(BUCKETS)


def entries(folder: epath.Path, dangling: bool = True) -> Iterator[Entry]:
    """Yield what stands in a folder, in any order.  Raise OSError where it cannot be listed.

    dangling: whether a link to nothing is a file, so that whoever reads it names it.
    """
    if is_remote(folder):
        yield from scan(folder)
        return
    # scandir knows from the listing what is a file, without a look at each of 1.3 million.
    with os.scandir(folder) as found:
        for entry in found:
            is_folder = entry.is_dir()
            if is_folder or entry.is_file() or (dangling and not os.path.exists(entry.path)):
                yield Entry(entry.name, is_folder)  # else: a pipe


@contextlib.contextmanager
def listed_once(folder: epath.Path) -> Iterator[None]:
    """Answer within, from one listing, what is asked of paths below a folder of a bucket.

    That takes a request for each 1,000 objects, and none for a path. Of a local folder do nothing.
    """
    if not is_remote(folder):
        yield
        return
    with known_listing(folder):
        yield


def generations(folder: epath.Path) -> dict[str, int]:
    """Return, within `listed_once`, the generations of a bucket's objects by their keys.

    Those of the listing that has this folder. There are none for a local folder.
    """
    return known_generations(folder) if is_remote(folder) else {}


def cache_folder() -> pathlib.Path:
    """Return where this package keeps what it can make or get again."""
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home) / "dpt_jax"


def size_of(file: epath.Path) -> int:
    """Return the bytes of a file, local or in a bucket."""
    return len(file.read_bytes())


def make_folder(folder: epath.Path, what: str) -> epath.Path:
    """Make a folder unless it is there, and return it.

    Raise UserError, which begins with `what`, where it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as reason:
        raise UserError(f"{what}: {folder} cannot be made ({reason}).") from reason
    return folder


@contextlib.contextmanager
def reading(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Turn whatever a reader of a foreign file raises into one UserError with the file's path.

    Args:
      path: of the file or folder.
      what: it should be, with its article: "a tokenizer".

    Raises:
      UserError: for every exception in the body except KeyboardInterrupt and the like.
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as reason:
        raise UserError(
            f"{reason.filename or path} does not exist, or has been removed."
        ) from reason
    except OSError as reason:
        file = reason.filename or path
        raise UserError(f"{file} cannot be read: {reason.strerror or short(reason)}.") from reason
    except MemoryError as reason:
        raise UserError(f"{path} cannot be read: not enough memory.") from reason
    except Exception as reason:
        refuse_stand_in(path)
        raise UserError(
            f"{path} cannot be read as {what} ({type(reason).__name__}: {short(reason)})."
        ) from reason


def refuse_stand_in(path: str | os.PathLike[str]) -> None:
    """Raise UserError if a file is empty, a web page or a Git LFS pointer, whatever its name."""
    file = as_path(path)
    if not file.is_file():
        return
    with file.open("rb") as opened:
        start = opened.read(100).removeprefix(codecs.BOM_UTF8).lstrip()
    if not start:
        raise UserError(f"{file} is empty: download or copy it again.")
    for begins, what in STAND_INS.items():
        if start.startswith(begins):
            raise UserError(f"{file} is {what}.")


def short(reason: BaseException) -> str:
    """Return an exception's text on one line of at most 200 characters, without a full stop."""
    return " ".join(str(reason).split())[:200].removesuffix(".")


def write_whole(file: epath.Path, content: bytes | str) -> None:
    """Write a file such that nobody ever sees a part of it, after a power cut neither.

    Args:
      file: local or in a bucket, in a folder that exists.
      content: bytes, or text that is encoded in UTF-8.

    Raises:
      UserError: if it cannot be written.
    """
    content = content.encode(errors="surrogateescape") if isinstance(content, str) else content
    try:
        if is_remote(file):
            file.write_bytes(content)
            return
        half = file.with_name(f".{file.name}.{uuid.uuid4().hex}.tmp")
        try:
            with half.open("xb") as written:
                written.write(content)
                written.flush()
                os.fsync(written.fileno())
            half.replace(file)
        finally:
            half.unlink(missing_ok=True)
    except OSError as reason:
        raise UserError(
            f"{file} cannot be written: {reason.strerror or short(reason)}."
        ) from reason


@contextlib.contextmanager
def on_this_disk(file: epath.Path) -> Iterator[pathlib.Path]:
    """Give a local file of the same name and content, for a library that reads no other."""
    if not is_remote(file):
        yield cast(pathlib.Path, file)
        return
    with tempfile.TemporaryDirectory(prefix="dpt_jax-") as folder:
        local = pathlib.Path(folder) / file.name
        local.write_bytes(file.read_bytes())
        yield local
