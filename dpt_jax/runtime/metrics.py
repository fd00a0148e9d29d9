"""What a run records: metrics.jsonl and TensorBoard events, written by host 0."""

import json
import pathlib
import sys
from typing import Any

from dpt_jax.runtime.devices import is_first

METRICS_FILE = "metrics.jsonl"


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
    """tensorboardX, which would import PyTorch where that is installed, for seconds and to no use
    here.
    """
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        import tensorboardX
    finally:
        if hidden:
            del sys.modules["torch"]
    return tensorboardX
