"""Paths in a bucket, which are used as local ones are: gs://BUCKET/KEY."""

import contextlib
import fnmatch
import io
import os
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from etils import epath

from dpt_jax.errors import UserError
from dpt_jax.runtime import object_store
from dpt_jax.runtime.object_store import Name, Object

BUCKETS = "gs://"


class Entry(NamedTuple):
    """The name of something in a folder, and whether it is a folder."""

    name: str
    is_folder: bool


class BucketPath(epath.Path):
    """A path in a bucket, made by `bucket_path`.

    Its methods are those of pathlib that can be had there; what a bucket has none of (folders of
    their own, renaming, appending) is left out. A folder is what objects have in their names, so
    making one does nothing. Each method raises StoreError where the store refuses.
    """

    def __str__(self) -> str:
        text = super().__str__()
        return f"gs:/{text}" if self.root else text

    __fspath__ = __str__

    @property
    def object_name(self) -> Name:
        """Return what the store calls this path's object."""
        return Name(self.parts[1], "/".join(self.parts[2:]))

    @property
    def prefix(self) -> Name:
        """Return what the names of objects below this folder begin with."""
        bucket, key = self.object_name
        return Name(bucket, f"{key}/" if key else "")

    def read_bytes(self) -> bytes:
        return object_store.read(self.object_name)

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def write_bytes(self, data: bytes) -> int:
        object_store.write(self.object_name, data)
        return len(data)

    def write_text(self, data: str, encoding: str | None = None, errors: str | None = None) -> int:
        return self.write_bytes(data.encode(encoding or "utf-8", errors or "strict"))

    def open(
        self,
        mode: str = "r",
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """Open to read, or to write an object as a whole when the file is closed."""
        if mode.strip("b") not in ("r", "w"):
            raise ValueError(f"an object in a bucket cannot be opened with mode {mode!r}")
        file = io.BytesIO(self.read_bytes()) if "r" in mode else _Upload(self)
        if "b" in mode:
            return file
        return io.TextIOWrapper(file, encoding or "utf-8", errors, newline)

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        if (known := _known(self)) is not None:
            return self.object_name.key in known.generations
        return bool(self.object_name.key) and object_store.describe(self.object_name) is not None

    def is_dir(self) -> bool:
        if (known := _known(self)) is not None:
            return self.prefix.key in known.folders
        found = object_store.list_objects(self.prefix, recursive=True, most=1)
        return bool(found.objects) or not self.object_name.key

    def scan(self) -> list[Entry]:
        """Return what stands in this folder."""
        start = len(self.prefix.key)
        if (known := _known(self)) is not None:
            return list(known.folders.get(self.prefix.key, ()))
        found = object_store.list_objects(self.prefix)
        files = [one.key[start:] for one in found.objects]
        folders = [prefix[start:-1] for prefix in found.prefixes]
        return [
            *(Entry(name, False) for name in files if name),
            *(Entry(name, True) for name in folders if name),
        ]

    def iterdir(self) -> Iterator["BucketPath"]:
        return (self / name for name, _ in self.scan())

    def objects(self) -> list[Object]:
        """Return all objects below this folder, at any depth."""
        found = object_store.list_objects(self.prefix, recursive=True).objects
        return [one for one in found if not one.key.endswith("/")]

    def rglob(self, pattern: str) -> Iterator["BucketPath"]:
        """Yield the objects below this folder whose last name fits."""
        for one in self.objects():
            path = BucketPath("/", self.object_name.bucket, one.key)
            if fnmatch.fnmatchcase(path.name, pattern):
                yield path

    def glob(self, pattern: str) -> Iterator["BucketPath"]:
        """Yield what fits a pattern, in which a star stands for no slash."""
        first, _, rest = pattern.partition("/")
        for name, is_folder in self.scan():
            hidden = name.startswith(".") and not first.startswith(".")
            if fnmatch.fnmatchcase(name, first) and not hidden:
                if not rest:
                    yield self / name
                elif is_folder:
                    yield from (self / name).glob(rest)

    def unlink(self, missing_ok: bool = False) -> None:
        object_store.remove(self.object_name)

    def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing."""

    def expanduser(self) -> "BucketPath":
        return self

    def resolve(self, strict: bool = False) -> "BucketPath":
        return self

    absolute = resolve


class _Upload(io.BytesIO):
    """What is written here becomes an object when this is closed."""

    def __init__(self, path: BucketPath) -> None:
        super().__init__()
        self._path = path

    def close(self) -> None:
        if not self.closed:
            self._path.write_bytes(self.getvalue())
        super().close()


def bucket_path(text: str) -> BucketPath:
    """Return the path that gs://BUCKET/KEY names.  Raise UserError where it names no bucket."""
    bucket, _, key = text.removeprefix(BUCKETS).partition("/")
    if not bucket:
        raise UserError(f"{text} names no bucket: write gs://BUCKET/FOLDER.")
    return BucketPath("/", bucket, key.lstrip("/"))


def as_bucket_path(path: epath.PathLike) -> BucketPath:
    """Return a path that is in a bucket as one."""
    return path if isinstance(path, BucketPath) else bucket_path(os.fspath(path))


def scan(folder: epath.Path) -> list[Entry]:
    """Return what stands in a folder of a bucket."""
    return as_bucket_path(folder).scan()


class _Listed(NamedTuple):
    """A whole listing: all objects' generations, and what stands in each folder, by its prefix."""

    generations: dict[str, int]
    folders: dict[str, dict[Entry, None]]


_listings: dict[Name, _Listed] = {}


@contextlib.contextmanager
def known_listing(path: epath.Path) -> Iterator[None]:
    """Answer from one listing what is asked of paths below a folder, see `files.listed_once`."""
    folder, known = as_bucket_path(path), _Listed({}, {})
    for one in object_store.list_objects(folder.prefix, recursive=True).objects:
        # The console makes a folder as an empty object of its name, with a slash at the end.
        path, is_folder = one.key.rstrip("/"), one.key.endswith("/")
        if not is_folder:
            known.generations[one.key] = one.generation
        while path:
            above, _, name = path.rpartition("/")
            there = known.folders.setdefault(f"{above}/" if above else "", {})
            if (entry := Entry(name, is_folder)) in there:
                break
            there[entry] = None
            path, is_folder = above, True
    _listings[folder.prefix] = known
    try:
        yield
    finally:
        del _listings[folder.prefix]


def known_generations(folder: epath.Path) -> dict[str, int]:
    """Return the generations of the objects below a folder, see `files.generations`."""
    known = _known(as_bucket_path(folder))
    assert known is not None, f"{folder} is not listed"
    return known.generations


def _known(path: BucketPath) -> _Listed | None:
    for name, known in _listings.items():
        if path.prefix.bucket == name.bucket and path.prefix.key.startswith(name.key):
            return known
    return None
