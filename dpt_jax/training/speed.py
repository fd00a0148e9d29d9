"""How fast a run trains, how long its devices wait for images, and traces of its steps."""

import contextlib
import time
from collections.abc import Iterator

import jax
from etils import epath

from dpt_jax import distributed, flops
from dpt_jax.errors import UserError
from dpt_jax.io import is_remote
from dpt_jax.logging import say
from dpt_jax.training.setup import Experiment
from dpt_jax.training.step import TrainState

# The metrics of an epoch that depend on the clock, so that they differ between equal runs.
TIMES = ("images_per_s", "tflop_per_s", "peak_share", "wait_share")
TRACES = "profile"  # the folder of traces in a workdir
STEPS_BEFORE_TRACE = 2  # the first step compiles


class Speed:
    """Measures one epoch after the other."""

    def __init__(self, experiment: Experiment, guidance_epochs: int) -> None:
        """Start with the first epoch.

        Args:
          experiment: what is trained.
          guidance_epochs: epochs in which the loss compares each tower with the frozen other one.
        """
        self._model, self._guidance_epochs = experiment.model, guidance_epochs
        self._texts = distributed.to_host(experiment.frozen.packed)
        peak = flops.peak(jax.devices()[0].device_kind)
        self._peak = peak and peak * jax.device_count()
        self.restart()

    def restart(self) -> None:
        """Start with an epoch."""
        self._began, self._waited, self._images, self._steps = time.perf_counter(), 0.0, 0, 0

    @contextlib.contextmanager
    def waiting(self, state: TrainState) -> Iterator[None]:
        """Measure getting a batch.  It counts if the devices have finished `state` meanwhile."""
        began = time.perf_counter()
        yield
        if state.step.is_ready():
            self._waited += time.perf_counter() - began

    def count(self, images: int) -> None:
        """Count a step with so many images, on all hosts together."""
        self._images += images
        self._steps += 1

    def epoch(self, number: int) -> dict[str, float]:
        """Return the TIMES of the epoch that has ended, and start with the next one.

        peak_share, the share of the chip's published bfloat16 rate, is missing for unknown chips.
        """
        seconds = time.perf_counter() - self._began
        guided = number <= self._guidance_epochs
        each = flops.step(self._model, self._texts, round(self._images / self._steps), guided)
        rate = self._steps * each / seconds
        share = {"peak_share": rate / self._peak} if self._peak else {}
        values = {
            "images_per_s": self._images / seconds,
            "tflop_per_s": rate / 1e12,
            **share,
            "wait_share": self._waited / seconds,
        }
        self.restart()
        return values


class Trace:
    """Writes a jax.profiler trace of some steps to WORKDIR/profile, one file per host."""

    def __init__(self, workdir: epath.Path, steps: int, start: int, last: int) -> None:
        """Trace `steps` steps of a run that takes the steps from start + 1 to last; 0 for none.

        Raises:
          UserError: the workdir is in a bucket.
        """
        if steps and is_remote(workdir):
            raise UserError(f"--profile writes to a disk: {workdir} is in a bucket.")
        self._folder = workdir / TRACES
        self._first = min(start + 1 + STEPS_BEFORE_TRACE, last) if steps else 0
        self._end, self._runs = self._first + steps, False

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *_: object) -> None:
        if self._runs:
            self._stop()

    def before(self, step: int, state: TrainState) -> None:
        """Start or stop before a step.  state: of the step before."""
        if step == self._first:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self._folder))
            self._runs = True
        elif self._runs and step == self._end:
            jax.block_until_ready(state)
            self._stop()

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._runs = False
        say(f"trace: {self._folder} (TensorBoard with tensorboard-plugin-profile shows it)")
