"""What a run records: metrics.jsonl and TensorBoard events, written by host 0."""

import concurrent.futures
import json
import pathlib
import sys
import tempfile
from typing import Any

from etils import epath

from dpt_jax.distributed import is_first
from dpt_jax.io import is_remote
from dpt_jax.runtime.store_errors import StoreError

METRICS_FILE = "metrics.jsonl"


class MetricWriter:
    """Appends one record a step to metrics.jsonl and TensorBoard.

    A resumed run goes on after step `start`: records of later steps, written
    before it was stopped, are dropped, so that no step is there twice. In a
    bucket, where nothing can be appended to, the files are written whole,
    from copies on this disk.
    """

    def __init__(self, workdir: epath.Path, start: int) -> None:
        if not is_first():
            return
        self._uploads = _Uploads(workdir) if is_remote(workdir) else None
        folder = self._uploads.folder if self._uploads else workdir
        file = folder / METRICS_FILE
        kept = [record for record in read_metrics(workdir) if record["step"] <= start]
        file.write_text("".join(f"{json.dumps(record)}\n" for record in kept))
        self._file = file.open("a")
        self._board = _tensorboard().SummaryWriter(str(folder), purge_step=start + 1)

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if is_first():
            self._file.close()
            self._board.close()
            if self._uploads:
                # What the store has failed at it would fail at again.
                self._uploads.close(finish=not isinstance(error, StoreError))

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Record scalars under names such as "loss"."""
        if not is_first():
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        if self._uploads:
            self._board.flush()
            self._uploads.begin()

    def settle(self) -> None:
        """Return when all that was recorded is where the run is kept."""
        if is_first() and self._uploads:
            self._uploads.finish()


class _Uploads:
    """Files of a folder on this disk that are written to a bucket, in the background."""

    def __init__(self, target: epath.Path) -> None:
        self._target = target
        self._disk = tempfile.TemporaryDirectory(prefix="dpt_jax-")
        self.folder = pathlib.Path(self._disk.name)
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._running: concurrent.futures.Future[None] | None = None
        self._behind = False  # whether something was recorded after the upload that runs began

    def begin(self) -> None:
        """Begin to write the files, unless they are being written."""
        self._behind = self._running is not None and not self._running.done()
        if not self._behind:
            self._wait()
            self._running = self._thread.submit(self._put)

    def finish(self) -> None:
        """Return when the files are written as they are now.  Raise StoreError."""
        self._wait()
        if self._behind:
            self._put()
            self._behind = False

    def close(self, finish: bool) -> None:
        if finish:
            self.finish()
        self._thread.shutdown()
        self._disk.cleanup()

    def _put(self) -> None:
        for file in sorted(self.folder.iterdir()):
            (self._target / file.name).write_bytes(file.read_bytes())

    def _wait(self) -> None:
        if self._running is not None:
            running, self._running = self._running, None
            running.result()


def read_metrics(workdir: epath.Path) -> list[dict[str, Any]]:
    """Return the records of metrics.jsonl, without a line that a stop cut in half."""
    file, records = workdir / METRICS_FILE, []
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            record = json.loads(line)
            records += [record] if "step" in record else []
        except (ValueError, TypeError):
            continue
    return records


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
