"""Lines and progress bars on the console, only from host 0."""

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

import tqdm

from dpt_jax.distributed import is_first

SECONDS_BETWEEN_LINES = 30
Item = TypeVar("Item")
_quiet = False
_said: set[str] = set()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress bars and the lines of standard output."""
    global _quiet
    before, _quiet = _quiet, True
    try:
        yield
    finally:
        _quiet = before


class Progress:
    """A progress bar on a terminal, otherwise a line in `file` every half minute."""

    def __init__(self, title: str, total: int, start: int = 0, file: TextIO | None = None) -> None:
        self._title, self._total, self._start, self._done = title, total, start, start
        self._file, self._began = file, time.monotonic()
        self._spoke = self._began
        self._terminal = sys.stderr.isatty() and is_first() and not _quiet
        self._bar = tqdm.tqdm(
            total=total, initial=start, desc=title, disable=not self._terminal, dynamic_ncols=True
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self) -> None:
        """Count a step."""
        self._bar.update()
        self._done += 1
        now = time.monotonic()
        steps = self._done - self._start - 1
        if not steps:
            self._began = now  # the first step includes compilation
        elif not self._terminal and now - self._spoke > SECONDS_BETWEEN_LINES:
            left = (now - self._began) / steps * (self._total - self._done)
            done = f"{self._title}: {self._done} of {self._total} steps"
            self._say(f"{done}, about {left:.0f} s left")

    def track(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Yield batches, and count each of them once it has been used."""
        for batch in batches:
            yield batch
            self.advance()

    def report(self, line: str, status: str) -> None:
        """Print `line`, or show the shorter `status` beside the bar."""
        if self._terminal:
            self._bar.set_postfix_str(status)
        else:
            self._say(line)

    def _say(self, line: str) -> None:
        self._spoke = time.monotonic()
        say(line, self._file)


def say(line: str, file: TextIO | None = None) -> None:
    """Print a line to standard output, or to `file`, and flush."""
    if is_first() and (file or not _quiet):
        print(line, file=file, flush=True)


def say_once(line: str, file: TextIO | None = None) -> None:
    """Print a line once per process, such as a notice that all runs of a sweep share."""
    if line not in _said and (file or not _quiet):
        _said.add(line)
        say(line, file)
