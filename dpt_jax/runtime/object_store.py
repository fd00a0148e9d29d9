"""Google Cloud Storage: each function is one request, but for listings of more than 1,000 objects.

gcsfs has the connection and the credentials, and is imported at the first request. The variable
STORAGE_EMULATOR_HOST names another server, which is asked without credentials.
"""

import datetime
import email.utils
import functools
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from dpt_jax.runtime.store_errors import StoreError, has_answered, patiently

EMULATOR = "STORAGE_EMULATOR_HOST"
# After which one attempt is given up: without a connection, without a byte of the answer, and at
# all, since what is uploaded to a store that takes no more of it waits for no answer yet.
CONNECT_SECONDS, SILENCE_SECONDS, ATTEMPT_SECONDS = 10, 60, 120
BYTES_AT_ONCE = 16 * 2**20  # few enough for one attempt at 1.2 Mbit/s
OBJECTS_A_PAGE = 1000  # as many as Google gives
PART = "dpt_jax_part"  # what divides a request into the object's metadata and its content

T = TypeVar("T")


class Name(NamedTuple):
    """What an object is called: gs://BUCKET/KEY."""

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"gs://{self.bucket}/{self.key}"


class Object(NamedTuple):
    """What a store says of an object.  generation: a number that each writing of it changes."""

    key: str
    size: int
    generation: int


class Listing(NamedTuple):
    """Objects, and the beginnings of further keys up to the next slash ("run/checkpoints/")."""

    objects: list[Object]
    prefixes: list[str]


def read(name: Name, generation: int | None = None) -> bytes:
    """Return the content of an object.  Raise FileNotFoundError where there is none.

    generation: the one that is wanted, None for the newest.
    """
    return _ask(name, lambda store: store.call("GET", _content(store, name, generation))[1])


def download(bucket: str, one: Object, file: pathlib.Path) -> None:
    """Write the content of an object to a local file, a request for each part of it.

    Raise FileNotFoundError where it has been removed or written again since it was listed.
    """
    name = Name(bucket, one.key)

    def part(start: int, store: Any) -> bytes:
        last = min(start + BYTES_AT_ONCE, one.size) - 1
        url = _content(store, name, one.generation)
        return store.call("GET", url, headers={"Range": f"bytes={start}-{last}"})[1]

    with file.open("wb") as out:
        for start in range(0, one.size, BYTES_AT_ONCE):
            out.write(_ask(name, functools.partial(part, start)))


def write(name: Name, content: bytes) -> None:
    """Write an object as a whole: others see all of it, or what was there before."""
    whole = (f"{name.bucket}/{name.key}", content)
    _ask(name, lambda store: store.pipe_file(*whole, chunksize=BYTES_AT_ONCE), of_bucket=True)


def write_if(
    name: Name, content: bytes, generation: int, patience: float | None = None
) -> int | None:
    """Write an object where it has this generation, 0 for none there; return its new one.

    Return None, and write nothing, where it has another. patience: see `store_errors.patiently`.
    """
    head = f"--{PART}\r\nContent-Type: application/json\r\n\r\n"
    parts = [head, json.dumps({"name": name.key}), "\r\n", head]
    body = "".join(parts).encode() + content + f"\r\n--{PART}--".encode()

    def request(store: Any) -> int:
        said = store.call(
            "POST",
            f"{store.base.removesuffix('storage/v1/')}upload/storage/v1/b/{name.bucket}/o",
            headers={"Content-Type": f"multipart/related; boundary={PART}"},
            data=body,
            uploadType="multipart",
            ifGenerationMatch=str(generation),
            json_out=True,
        )
        return int(said["generation"])

    try:
        return _ask(name, request, of_bucket=True, patience=patience)
    except FileExistsError:
        return None


def remove(name: Name, generation: int | None = None, patience: float | None = None) -> None:
    """Remove an object, where one is given only if it has this generation; or do nothing."""
    only = {} if generation is None else {"ifGenerationMatch": str(generation)}
    try:
        _ask(name, lambda store: store.call("DELETE", "b/{}/o/{}", *name, **only), False, patience)
    except (FileNotFoundError, FileExistsError):
        return


def copy(source: Name, target: Name) -> None:
    """Copy an object within the store.  Raise FileNotFoundError where there is none."""
    paths = [f"{name.bucket}/{name.key}" for name in (source, target)]
    _ask(source, lambda store: store.cp_file(*paths))


def describe(name: Name) -> tuple[Object, float] | None:
    """Return an object and the seconds since it was written, by the store's clock, or None."""
    try:
        headers, said = _ask(name, lambda store: store.call("GET", "b/{}/o/{}", *name))
    except FileNotFoundError:
        return None
    item = json.loads(said)
    now = email.utils.parsedate_to_datetime(headers["Date"])
    return _object(item), (now - datetime.datetime.fromisoformat(item["updated"])).total_seconds()


def list_objects(name: Name, recursive: bool = False, most: int = 0) -> Listing:
    """Return what is below a prefix, such as "run/", or "" for the whole bucket.

    recursive: objects at any depth, and no prefixes. most: end after so many, 0 for all.
    """
    found = Listing([], [])
    for page in _pages(name, recursive, most):
        found.objects.extend(map(_object, page.get("items", ())))
        found.prefixes.extend(page.get("prefixes", ()))
        if 0 < most <= len(found.objects) + len(found.prefixes):
            break
    return found


def _pages(name: Name, recursive: bool, most: int) -> Iterator[dict[str, Any]]:
    wanted = {
        "prefix": name.key or None,
        "delimiter": None if recursive else "/",
        "maxResults": most or OBJECTS_A_PAGE,
        "fields": "nextPageToken,prefixes,items(name,size,generation)",
    }
    token = None
    while True:
        options = {**wanted, "pageToken": token, "json_out": True}
        request = functools.partial(_list_page, name.bucket, options)
        page = _ask(name, request, of_bucket=True)
        yield page
        token = page.get("nextPageToken")
        if not token:
            return


def _list_page(bucket: str, options: dict[str, Any], store: Any) -> dict[str, Any]:
    return store.call("GET", "b/{}/o", bucket, **options)


def _content(store: Any, name: Name, generation: int | None) -> str:
    """Return the address of an object's content."""
    url = store.url(f"{name.bucket}/{name.key}")
    return url if generation is None else f"{url}&generation={generation}"


def _object(item: dict[str, Any]) -> Object:
    return Object(item["name"], int(item["size"]), int(item["generation"]))


def _ask(
    name: Name,
    request: Callable[[Any], T],
    of_bucket: bool = False,
    patience: float | None = None,
) -> T:
    """Return what the request returns.  Raise as `store_errors.patiently` does."""
    store = _store(os.getpid(), os.environ.get(EMULATOR, ""))
    path = str(name).rstrip("/")
    try:
        return patiently(lambda: request(store), name.bucket, path, of_bucket, patience)
    except FileNotFoundError:
        if not has_answered(name.bucket):
            list_objects(Name(name.bucket, ""), most=1)  # the bucket may not be there either
        raise


@functools.cache
def _store(process: int, emulator: str) -> Any:
    """Return gcsfs's connection, one for a process, which does not repeat requests by itself."""
    try:
        import aiohttp
        from gcsfs.core import GCSFileSystem
    except ImportError as reason:
        raise StoreError(f"gs:// paths need gcsfs ({reason}): `pip install gcsfs`.") from reason

    class Store(GCSFileSystem):
        """Asks once, where gcsfs would ask six times: `patiently` says how long, and tells it."""

        _request = GCSFileSystem._request.__wrapped__

    return Store(
        token="anon" if emulator else None,
        requests_timeout=aiohttp.ClientTimeout(
            total=ATTEMPT_SECONDS, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS
        ),
        use_listings_cache=False,
        skip_instance_cache=True,
    )
