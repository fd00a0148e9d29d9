"""Metrics of a run: metrics.jsonl and TensorBoard events, its speed, and traces of its steps."""

import contextlib
import json
import math
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from etils import epath
from jax.interpreters.partial_eval import dce_jaxpr

from dpt_jax.distributed import is_first
from dpt_jax.errors import UserError
from dpt_jax.io import as_path, is_remote, reading, write_whole
from dpt_jax.logging import say
from dpt_jax.training.step import TrainState

METRICS_FILE = "metrics.jsonl"
# Timing metrics of an epoch, which differ between otherwise equal runs.
TIMES = ("images_per_s", "tflop_per_s", "peak_share", "wait_share")
TRACES = "profile"  # the folder of traces in a workdir
STEPS_BEFORE_TRACE = 2  # the first step compiles

# Published peak rates of dense bfloat16 products, by prefix of JAX's device_kind, longer ones
# first. Per core if JAX counts two devices per chip (TPU v2, v3 and 7x).
PEAKS = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4 lite": 138e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
    "TPU7x": 1153.5e12,
    "NVIDIA A10G": 70e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L4": 121e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


@contextlib.contextmanager
def metric_writer(
    workdir: epath.Path, start: int
) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """Provide a function that appends the scalars of a step to metrics.jsonl and TensorBoard.

    Records of steps after `start`, written before the run was stopped, are dropped.
    """
    if not is_first():
        yield lambda step, values: None
        return
    with contextlib.ExitStack() as closing:
        # Objects in a bucket cannot be appended to, so they are copies of local files.
        folder = pathlib.Path(workdir)
        if is_remote(workdir):
            made = tempfile.TemporaryDirectory(prefix="dpt_jax-")
            folder = pathlib.Path(closing.enter_context(made))
        kept = [json.dumps(record) for record in read_metrics(workdir) if record["step"] <= start]
        write_whole(as_path(folder) / METRICS_FILE, "".join(f"{line}\n" for line in kept))
        board = _tensorboard().SummaryWriter(
            str(folder), purge_step=start + 1, filename_suffix=f".{start + 1}"
        )

        def upload() -> None:
            for written in folder.iterdir() if is_remote(workdir) else ():
                write_whole(workdir / written.name, written.read_bytes())

        def write(step: int, values: Mapping[str, float]) -> None:
            with (folder / METRICS_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
            for name, value in values.items():
                board.add_scalar(name, value, step)
            board.flush()
            upload()

        closing.callback(upload)
        closing.callback(board.close)
        yield write


def read_metrics(workdir: epath.Path) -> list[dict[str, Any]]:
    """Return the records of metrics.jsonl, without a line that an interruption truncated."""
    file, records = as_path(workdir) / METRICS_FILE, []
    with reading(file, "metrics"):
        for line in file.read_bytes().splitlines() if file.exists() else ():
            with contextlib.suppress(ValueError):
                records.append(json.loads(line))
    return records


def _tensorboard() -> Any:
    """Import tensorboardX without PyTorch, which takes seconds to import and is not used."""
    hidden = sys.modules.setdefault("torch", None) is None  # type: ignore[arg-type]
    import tensorboardX

    if hidden:
        del sys.modules["torch"]
    return tensorboardX


class Speed:
    """Measures the speed of each epoch."""

    def __init__(self) -> None:
        peak = peak_rate(jax.devices()[0].device_kind)
        self._peak = peak and peak * jax.device_count()
        self.restart()

    def restart(self) -> None:
        """Start a new epoch."""
        self._began, self._waited, self._images, self._steps = time.perf_counter(), 0.0, 0, 0

    @contextlib.contextmanager
    def waiting(self, state: TrainState) -> Iterator[None]:
        """Time the wait for a batch.  It counts if the devices finish `state` meanwhile."""
        began = time.perf_counter()
        yield
        if state.step.is_ready():
            self._waited += time.perf_counter() - began

    def count(self, images: int) -> None:
        """Count a step and its images on all hosts."""
        self._images += images
        self._steps += 1

    def epoch(self, operations: float) -> dict[str, float]:
        """Return the TIMES of the epoch that has ended, and start the next.

        operations: of a step on all devices. peak_share, the share of the chip's published bfloat16
        rate, is missing for unknown chips.
        """
        seconds = time.perf_counter() - self._began
        rate = self._steps * operations / seconds
        values = {"images_per_s": self._images / seconds, "tflop_per_s": rate / 1e12}
        if self._peak:
            values["peak_share"] = rate / self._peak
        values["wait_share"] = self._waited / seconds
        self.restart()
        return values


def peak_rate(device_kind: str) -> float | None:
    """Return the peak rate of a device in bfloat16 operations per second, None if unknown."""
    return next((rate for name, rate in PEAKS.items() if device_kind.startswith(name)), None)


def count_operations(program: Callable[..., Any], *arguments: Any) -> float:
    """Return the operations of one call on one device: two per multiply-add.

    Only matrix products count, those in a loop once per iteration. Padding, masked pairs and
    recomputed activations (`train.remat`) count too, unused results do not. The program is traced
    but not compiled; its arguments may be shapes.
    """
    traced = jax.make_jaxpr(program)(*arguments).jaxpr
    used, _ = dce_jaxpr(traced, [True] * len(traced.outvars))
    return _products(used)


def _products(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive is jax.lax.dot_general_p:
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            each = math.prod(left[axis] for axis in contracted)
            total += 2.0 * each * math.prod(equation.outvars[0].aval.shape)
        # Programs in its parameters, such as the body of a loop.
        parts = [getattr(x, "jaxpr", x) for x in jax.tree.leaves(equation.params)]
        inner = sum(_products(part) for part in parts if hasattr(part, "eqns"))
        total += equation.params.get("length", 1) * inner
    return total


@contextlib.contextmanager
def tracing(
    workdir: epath.Path, steps: int, start: int, last: int
) -> Iterator[Callable[[int, TrainState], None]]:
    """Provide a function that starts or ends a jax.profiler trace before a step.

    It takes the step and the previous state. The trace is of this number of `steps`, and goes to
    WORKDIR/profile, one file per host. start, last: steps of this part of the run.
    """
    if steps and is_remote(workdir):
        raise UserError(f"--profile needs a local --workdir: {workdir} is in a bucket.")
    folder, first = workdir / TRACES, min(start + 1 + STEPS_BEFORE_TRACE, last)
    with contextlib.ExitStack() as running:

        def before(step: int, state: TrainState) -> None:
            if steps and step in (first, first + steps):
                jax.block_until_ready(state)
                running.close()
                if step == first:
                    how = "view it in TensorBoard with tensorboard-plugin-profile"
                    running.callback(say, f"trace: {folder} ({how})")
                    running.enter_context(jax.profiler.trace(str(folder)))

        yield before
