"""Folders between buckets and this disk, for libraries that know disks alone."""

import concurrent.futures
import hashlib
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable
from typing import TypeVar

from etils import epath

from dpt_jax.errors import UserError
from dpt_jax.io import cache_folder
from dpt_jax.runtime import object_store
from dpt_jax.runtime.bucket import BucketPath, as_bucket_path
from dpt_jax.runtime.object_store import Object

REQUESTS_AT_ONCE = 8

T = TypeVar("T")


def upload(folder: epath.PathLike, target: epath.Path, last: str) -> None:
    """Write the files below a folder of this disk to a bucket.

    last: the file, by its path below the folder, that is written when the others are there: who
    finds it may take the folder for whole.
    """
    source = pathlib.Path(folder)
    files = [file.relative_to(source) for file in source.rglob("*") if file.is_file()]

    def put(file: pathlib.Path) -> None:
        (target / file).write_bytes((source / file).read_bytes())

    at_once(put, (file for file in files if file != pathlib.Path(last)))
    put(pathlib.Path(last))


def download(source: BucketPath, objects: Iterable[Object], target: pathlib.Path) -> None:
    """Write objects below a folder of a bucket to a folder of this disk.

    That appears as a whole; if there is one already, it stays.
    """
    bucket, start = source.prefix.bucket, len(source.prefix.key)

    def get(one: Object) -> None:
        file = half / one.key[start:]
        file.parent.mkdir(parents=True, exist_ok=True)
        object_store.download(bucket, one, file)

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".half-") as above:
        half = pathlib.Path(above) / target.name
        half.mkdir()
        at_once(get, objects)
        if not target.is_dir():
            half.rename(target)


def local_copy(
    folder: epath.Path, wanted: Callable[[str], bool], tell: Callable[[str], object]
) -> pathlib.Path:
    """Return a folder on this disk with the objects below one in a bucket.

    A copy is made once for each state of the folder, whose name tells it. wanted: whether an object
    is copied, by its path below the folder. tell: is given a line before anything is copied. Raise
    UserError where there is no room, and where an object changes meanwhile.
    """
    source = as_bucket_path(folder)
    start = len(source.prefix.key)
    objects = [one for one in source.objects() if wanted(one.key[start:])]
    # An object that is written again has another generation.
    state = "\n".join(f"{one.key} {one.generation}" for one in objects)
    digest = hashlib.sha256(state.encode()).hexdigest()[:12]
    bucket, key = source.object_name
    target = cache_folder() / "buckets" / bucket / f"{key}@{digest}"
    if target.is_dir():
        if all((target / one.key[start:]).is_file() for one in objects):
            return target
        shutil.rmtree(target)  # of a cache, files that are not used for long may be removed
    size = sum(one.size for one in objects)
    tell(f"copying {len(objects)} files, {size / 1e6:.1f} MB, from {source} to {target}")
    try:
        download(source, objects, target)
    except UserError:
        raise
    except FileNotFoundError as reason:
        raise UserError(
            f"{source} changed while it was copied ({reason}): give the same command again, which "
            "takes it as it is then."
        ) from reason
    except OSError as reason:
        raise UserError(
            f"{source} cannot be copied to {target} ({reason}): make room, or name another place "
            "with the variable XDG_CACHE_HOME."
        ) from reason
    return target


def at_once(do: Callable[[T], object], each: Iterable[T]) -> None:
    """Call a function for each of several things, some at a time.  Raise what a call raises."""
    with concurrent.futures.ThreadPoolExecutor(REQUESTS_AT_ONCE) as threads:
        list(threads.map(do, each))
