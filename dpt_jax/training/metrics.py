"""metrics.jsonl and TensorBoard events of a run, written by host 0."""

import contextlib
import json
import pathlib
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from etils import epath

from dpt_jax.distributed import is_first
from dpt_jax.io import as_path, is_remote, reading, write_whole

METRICS_FILE = "metrics.jsonl"


class MetricWriter:
    """Appends one record a step to metrics.jsonl and TensorBoard.

    A resumed run continues after step `start`: records of later steps, written before it was
    stopped, are dropped, so that no step is there twice. For a bucket, whose objects cannot be
    appended to, the files are written on this disk and copied after each record.
    """

    def __init__(self, workdir: epath.Path, start: int) -> None:
        if not is_first():
            return
        self._workdir, self._closing = workdir, contextlib.ExitStack()
        self._folder = pathlib.Path(workdir)
        if is_remote(workdir):
            made = tempfile.TemporaryDirectory(prefix="dpt_jax-")
            self._folder = pathlib.Path(self._closing.enter_context(made))
        kept = [record for record in read_metrics(workdir) if record["step"] <= start]
        write_whole(as_path(self._folder) / METRICS_FILE, _lines(kept))
        self._board = _tensorboard().SummaryWriter(
            str(self._folder), purge_step=start + 1, filename_suffix=f".{start + 1}"
        )
        self._closing.callback(self._upload)
        self._closing.callback(self._board.close)

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if is_first():
            self._closing.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record scalars under names such as "loss"."""
        if not is_first():
            return
        with (self._folder / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(_lines([{"step": step, **values}]))
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        self._board.flush()
        self._upload()

    def _upload(self) -> None:
        if is_remote(self._workdir):
            for written in self._folder.iterdir():
                write_whole(self._workdir / written.name, written.read_bytes())


def read_metrics(workdir: epath.Path) -> list[dict[str, Any]]:
    """Return the records of metrics.jsonl, without a line that a stop cut in half."""
    file, records = as_path(workdir) / METRICS_FILE, []
    with reading(file, "metrics"):
        text = file.read_bytes().decode(errors="replace") if file.exists() else ""
    for line in text.splitlines():
        try:
            record = json.loads(line)
            records += [record] if "step" in record else []
        except (ValueError, TypeError):
            continue
    return records


def _lines(records: list[dict[str, Any]]) -> str:
    return "".join(f"{json.dumps(record)}\n" for record in records)


def _tensorboard() -> Any:
    """Import tensorboardX without PyTorch, which it would import for seconds and to no use."""
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        import tensorboardX
    finally:
        if hidden:
            del sys.modules["torch"]
    return tensorboardX
