"""What a run tells: metrics.jsonl, TensorBoard events, and lines or a progress bar on the console.

Of several hosts, the first one tells; on the others everything here is silent.
"""

import json
import pathlib
import sys
import time
from typing import Any, TextIO

import tqdm

from dpt_jax.devices import is_first

METRICS_FILE = "metrics.jsonl"
SECONDS_BETWEEN_LINES = 30


class MetricWriter:
    """Appends one record a step to metrics.jsonl and TensorBoard.

    A resumed run goes on behind `start`: records of later steps, written
    before it was stopped, are dropped, so that no step stands there twice.
    """

    def __init__(self, workdir: pathlib.Path, start: int) -> None:
        if not is_first():
            return
        file = workdir / METRICS_FILE
        kept = [record for record in read_metrics(workdir) if record["step"] <= start]
        file.write_text("".join(f"{json.dumps(record)}\n" for record in kept))
        self._file = file.open("a")
        self._board = _tensorboard().SummaryWriter(str(workdir), purge_step=start + 1)

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if is_first():
            self._file.close()
            self._board.close()

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Records scalars under names such as "loss"."""
        if not is_first():
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl, but for a line that a stop cut in half."""
    file, records = workdir / METRICS_FILE, []
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            record = json.loads(line)
            records += [record] if "step" in record else []
        except (ValueError, TypeError):
            continue
    return records


def _tensorboard() -> Any:
    """tensorboardX, which would import PyTorch where that is installed, for seconds and to no use here."""
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        import tensorboardX
    finally:
        if hidden:
            del sys.modules["torch"]
    return tensorboardX


class Progress:
    """A bar with the time left on a terminal; otherwise plain lines in `file`, now and then."""

    def __init__(self, title: str, total: int, start: int = 0, file: TextIO | None = None) -> None:
        self._file = file
        self._title, self._total, self._start, self._done = title, total, start, start
        self._began = self._spoke = time.monotonic()
        self._terminal = sys.stderr.isatty() and is_first()
        self._bar = tqdm.tqdm(
            total=total, initial=start, desc=title, disable=not self._terminal, dynamic_ncols=True, unit="step"
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self) -> None:
        """One step done."""
        self._bar.update()
        self._done += 1
        now = time.monotonic()
        steps = self._done - self._start - 1
        if not steps:
            self._began = now  # the first step compiles, and says nothing of the others
        elif not self._terminal and now - self._spoke > SECONDS_BETWEEN_LINES:
            left = (now - self._began) / steps * (self._total - self._done)
            self._say(f"{self._title}: {self._done} of {self._total} steps, about {left:.0f} s left")

    def report(self, line: str, status: str) -> None:
        """`line` on its own, or, beside the bar, the shorter `status`."""
        if self._terminal:
            self._bar.set_postfix_str(status)
        else:
            self._say(line)

    def _say(self, line: str) -> None:
        self._spoke = time.monotonic()
        say(line, self._file)


def say(line: str, file: TextIO | None = None) -> None:
    """A line on standard output, or in `file`, at once."""
    if is_first():
        print(line, file=file, flush=True)
