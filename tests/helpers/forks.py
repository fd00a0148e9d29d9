"""Processes of the program that begin where its imports end.

They are processes like any other, with their own signals, devices, memory and exit codes. Only the
imports, of which a start has three seconds, are those of a server that they are forked from.
"""

import atexit
import functools
import multiprocessing
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import TextIO

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.helpers.imports"])


def can_start(arguments: Sequence[str]) -> bool:
    """Whether it is `main.py …` or `-m MODULE …`: a script may want to be there before imports."""
    return arguments[0] in ("main.py", "-m")


class Fork:
    """`python ARGUMENTS` in a group of its own, with what of subprocess.Popen the tests use."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        cwd: pathlib.Path,
        env: Mapping[str, str],
        errors: pathlib.Path | None = None,
    ) -> None:
        """Start it.  errors: the file of what it writes to stderr, which is else in `stdout`."""
        self.args = list(arguments)
        with tempfile.TemporaryDirectory() as folder:
            pipe = pathlib.Path(folder) / "stdout"
            os.mkfifo(pipe)
            self._process = _CONTEXT.Process(
                target=_run, args=(self.args, str(cwd), dict(env), pipe, errors)
            )
            self._process.start()
            self.stdout: TextIO = pipe.open(encoding="utf-8", errors="backslashreplace")
        self.pid = self._process.pid or 0
        self.send_signal = functools.partial(os.kill, self.pid)
        self.terminate, self.kill = self._process.terminate, self._process.kill

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code once it has ended.  Raise TimeoutExpired as Popen does."""
        self._process.join(timeout)
        if (code := self.returncode) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Return the rest of its output once it has ended."""
        rest = self.stdout.read()  # until it ends: nothing else has the pipe
        self.wait(timeout)
        return rest, None


def _run(
    arguments: list[str],
    cwd: str,
    env: dict[str, str],
    pipe: pathlib.Path,
    errors: pathlib.Path | None,
) -> None:
    """Be `python ARGUMENTS`."""
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(os.open(pipe, os.O_WRONLY), 1)
    os.dup2(1 if errors is None else os.open(errors, os.O_WRONLY | os.O_CREAT, 0o600), 2)
    sys.stdout, sys.stderr = (os.fdopen(fd, "w", encoding="utf-8", closefd=False) for fd in (1, 2))
    sys.argv = arguments if arguments[0] != "-m" else arguments[1:]
    sys.path[0] = cwd
    try:
        if arguments[0] == "-m":
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(arguments[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # which an interpreter's own end would run
