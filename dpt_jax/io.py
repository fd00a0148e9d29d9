"""Paths as people write them (local, below ~, or gs://), and files that are read and written whole.

Paths in a bucket are epath's over gcsfs. Orbax uses the same.
"""

import codecs
import contextlib
import functools
import hashlib
import importlib.util
import logging
import os
import pathlib
import re
import tarfile
import tempfile
import uuid
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, cast

from etils import epath
from etils.epath import backend

from dpt_jax.errors import UserError

ASSETS = pathlib.Path(__file__).parent / "assets"  # the files that come with the package
BUCKETS = "gs://"
EMULATOR = "STORAGE_EMULATOR_HOST"  # a server in place of Google's, without credentials
# Without these, epath takes TensorFlow's file system wherever TensorFlow is installed, and gcsfs
# asks for the type of each bucket with a client of its own. They are read at the first gs:// path.
os.environ.setdefault("EPATH_USE_TF", "0")
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
# What a server, or Git without its large files, delivers instead of a file.
STAND_INS = {
    b"version https://git-lfs": "a Git LFS pointer: run `git lfs pull` in its folder",
    b"<": "an HTML or XML page: the download failed, so download it again",
}


def as_path(name: str | os.PathLike[str]) -> epath.Path:
    """Return a local path, with ~ expanded, or gs://BUCKET/KEY as a path.

    A local one is a pathlib path, which has the methods of epath's and more. Raise UserError for
    an empty name, another scheme, or gs:// without gcsfs.
    """
    text = os.fspath(name)
    if not text:
        raise UserError("a path is empty: name a file or a folder.")
    if text.startswith("gs:") and not text.startswith(BUCKETS):  # gs:// through pathlib
        rest = text.removeprefix("gs:").lstrip("/")
        raise UserError(f"{text}: paths in a bucket begin with two slashes: write {BUCKETS}{rest}.")
    scheme, found, rest = text.partition("://")
    if not found:
        return cast(epath.Path, pathlib.Path(text).expanduser())
    if f"{scheme}://" != BUCKETS:
        raise UserError(f"{text}: paths are local or begin with {BUCKETS}, not with {scheme}://.")
    if not rest.strip("/"):
        raise UserError(f"{text} does not name a bucket: write gs://BUCKET/FOLDER.")
    _configure_gcsfs()
    return epath.Path(text)


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is in a bucket."""
    return os.fspath(path).startswith(BUCKETS)


def file_system(path: str | os.PathLike[str]) -> Any:
    """Return the fsspec file system that epath uses for a path: gcsfs's in a bucket."""
    return backend.fsspec_backend.fs(as_path(path))


@functools.cache
def _configure_gcsfs() -> None:
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError("gs:// paths need gcsfs: `pip install gcsfs`.")
    import fsspec

    options: dict[str, Any] = {"use_listings_cache": False}  # other hosts write there too
    if EMULATOR in os.environ:
        options["token"] = "anon"
    for scheme in ("gs", "gcs"):
        fsspec.config.conf.setdefault(scheme, {}).update(options)
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs tracebacks of what it raises


def entries(folder: epath.Path, dangling: bool = True) -> Iterator[tuple[str, bool]]:
    """Yield (name, is a folder) of the entries of a folder, in any order.

    dangling: whether a link to nothing counts as a file.
    """
    if is_remote(folder):
        own = os.fspath(folder).removeprefix(BUCKETS)
        for found in file_system(folder).ls(own, detail=True):
            path = found["name"].rstrip("/")
            if path != own:  # the Cloud console makes a folder as an empty object
                yield path.rpartition("/")[2], found["type"] == "directory"
        return
    # scandir takes file types from the listing, without a stat of each of 1.3 million.
    with os.scandir(folder) as listed:
        for entry in listed:
            is_folder = entry.is_dir()
            if is_folder or entry.is_file() or (dangling and not os.path.exists(entry.path)):
                yield entry.name, is_folder  # everything but pipes and devices


def find_files(folder: epath.Path, name: str) -> list[epath.Path]:
    """Return the files with this name below a folder, at any depth, sorted."""
    if is_remote(folder):
        found = file_system(folder).find(os.fspath(folder))
        return [as_path(BUCKETS + path) for path in sorted(found) if path.endswith(f"/{name}")]
    return sorted(folder.rglob(name))


@contextlib.contextmanager
def listed_once(folder: epath.Path) -> Iterator[None]:
    """Cache the listing of a folder in a bucket, for is_file() and the like on paths below it.

    That takes one request per 1,000 objects instead of one per path.
    """
    if not is_remote(folder):
        yield
        return
    gcs = file_system(folder)
    gcs.dircache.use_listings_cache = True
    try:
        gcs.find(os.fspath(folder))
        yield
    finally:
        gcs.dircache.use_listings_cache = False
        gcs.invalidate_cache()


def cache_folder() -> pathlib.Path:
    """Return the folder for what can be downloaded or computed again."""
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home) / "dpt_jax"


@contextlib.contextmanager
def _made_whole(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """Provide a new folder, which becomes `target` at the end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=target.parent) as half:
        whole = pathlib.Path(half) / "whole"
        whole.mkdir()
        yield whole
        # An existing folder may lack files, or be read by another process: replace it at once.
        with contextlib.suppress(FileNotFoundError):
            target.rename(pathlib.Path(half) / "old")
        whole.rename(target)


def local_copy(
    folder: epath.Path, wanted: Callable[[str], bool], tell: Callable[[str], object]
) -> pathlib.Path:
    """Return a cached copy of objects in a bucket; each version is copied once.

    wanted: whether an object is copied, by its path below the folder. tell: prints a line if
    something is copied.
    """
    gcs, place = file_system(folder), os.fspath(folder).removeprefix(BUCKETS).rstrip("/")

    def versions() -> dict[str, str]:
        every = {
            path.removeprefix(f"{place}/"): str(about.get("generation"))  # changes with each write
            for path, about in gcs.find(place, detail=True).items()
            if not path.endswith("/")
        }
        return {name: version for name, version in every.items() if wanted(name)}

    with reading(folder, "a folder of a bucket"):
        found = versions()
        state = hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()[:12]
        target = cache_folder() / "buckets" / f"{place}@{state}"
        if all((target / name).is_file() for name in found):
            return target
        tell(f"copying {len(found)} files from {folder} to {target}")
        with _made_whole(target) as half:
            for name in found:
                (half / name).parent.mkdir(parents=True, exist_ok=True)
            gcs.get([f"{place}/{name}" for name in found], [str(half / name) for name in found])
            if versions() != found:
                raise UserError(f"{folder} changed while it was copied: run the command again.")
    return target


def unpacked(archive: epath.Path) -> epath.Path:
    """Return the folder of a zip or tar archive, which is unpacked to the cache folder once.

    Raise UserError if it is not an archive, an entry leads out of the folder, or there is no room.
    """
    if is_remote(archive):
        folder = local_copy(archive.parent, {archive.name}.__contains__, lambda line: None)
        archive = cast(epath.Path, folder / archive.name)
    with reading(archive, "a zip or tar archive of images"):
        found = os.stat(archive)
        state = (str(archive.resolve()), found.st_size, found.st_mtime_ns)
        digest = hashlib.sha256(repr(state).encode(errors="surrogateescape")).hexdigest()[:12]
        target = cache_folder() / "archives" / f"{archive.name}@{digest}"
        if not target.is_dir():
            with _made_whole(target) as half:
                if zipfile.is_zipfile(archive):
                    with zipfile.ZipFile(archive) as opened:
                        opened.extractall(half)  # drops .. and links
                else:
                    with tarfile.open(archive) as tar:
                        tar.extractall(half, filter="data")  # refuses them
    return cast(epath.Path, target)


def size_of(file: epath.Path) -> int:
    """Return the size of a file in bytes, local or in a bucket."""
    return file_system(file).size(os.fspath(file))


def make_folder(folder: epath.Path, what: str) -> epath.Path:
    """Make a folder unless it exists, and return it.  what: begins the error message."""
    try:
        if not is_remote(folder):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as reason:
        raise UserError(f"{what}: {folder} cannot be created ({reason}).") from reason
    return folder


@contextlib.contextmanager
def reading(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Turn any error of a reader of a foreign file into one UserError with the file's path.

    what: what the file or folder should be, with an article: "a tokenizer".
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as reason:
        file = reason.filename or path
        raise UserError(f"{file} does not exist, or has been removed.") from reason
    except OSError as reason:
        file = reason.filename or path
        raise UserError(f"{file} cannot be read: {reason.strerror or short(reason)}.") from reason
    except Exception as reason:
        _refuse_stand_in(path)
        why = f"{type(reason).__name__}: {short(reason)}"
        raise UserError(f"{path} cannot be read as {what} ({why}).") from reason


def _refuse_stand_in(path: str | os.PathLike[str]) -> None:
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
    """Write bytes, or text in UTF-8, to a file atomically, even if the power fails."""
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
        why = reason.strerror or short(reason)
        raise UserError(f"{file} cannot be written: {why}.") from reason


@contextlib.contextmanager
def without_wildcards(folder: epath.Path) -> Iterator[epath.Path]:
    """Provide a link to a folder with [, * or ? in its path, which Orbax would take for a pattern.

    Otherwise provide the absolute path, which Orbax needs.
    """
    folder = folder if is_remote(folder) else folder.absolute()
    if is_remote(folder) or not re.search(r"[*?\[\]\\]", os.fspath(folder)):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="dpt_jax-") as links:
        link = pathlib.Path(links) / "folder"
        link.symlink_to(folder, target_is_directory=True)
        yield cast(epath.Path, link)
