"""Where the time of a sweep goes: seconds of each stage, as the main thread spends them.

Compilation is what JAX says of itself (`jax.monitoring`). The other stages are functions of the
package, which `watch` wraps: what a stage does inside another one counts for itself alone.
"""

import collections
import contextlib
import functools
import importlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

OTHER, COMPILE = "all else", "compile"
COMPILING = "/jax/core/compile/"  # what events of tracing, lowering and compiling begin with
COMPILED = "/jax/core/compile/backend_compile_duration"
# Functions by the stage that they are. What is loaded comes out of an iterator, see LOADED.
STAGES = {
    "weights": ("dpt_jax.training.setup:load_clip",),
    "lists of images": ("dpt_jax.training.setup:load_dataset",),
    "texts and placing weights": ("dpt_jax.training.setup:assemble",),
    "training": ("dpt_jax.runs:train",),
    "evaluation": ("dpt_jax.runs:evaluate",),
    "writing": (
        "dpt_jax.training.checkpoints:Checkpoints.save",
        "dpt_jax.training.checkpoints:Checkpoints.wait",
        "dpt_jax.training.metrics:MetricWriter.write",
        "dpt_jax.evaluation.evaluate:write_results",
        "dpt_jax.settings:save_once",
    ),
}
LOADED = {
    "waiting for training images": "dpt_jax.data.loader:train_batches",
    "waiting for test images": "dpt_jax.data.loader:test_batches",
}
LOOKING, LOOK = "plain CLIP", "dpt_jax.evaluation.evaluate:make_look"
ORDER = ("import", *STAGES, COMPILE, *LOADED, LOOKING, OTHER)


class Clock:
    """Seconds by stage; a stage inside another one stops the other's clock."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = collections.defaultdict(float)
        self.programs = 0
        self._stack = [OTHER]
        self._since = time.perf_counter()
        self._compiled: list[tuple[float, float]] = []  # begin and end of what has been counted
        jax.monitoring.register_event_duration_secs_listener(self._event)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what happens inside for a stage."""
        self._turn()
        self._stack.append(name)
        try:
            yield
        finally:
            self._turn()
            self._stack.pop()

    def read(self) -> dict[str, float]:
        """Return the seconds of each stage so far."""
        self._turn()
        return dict(self.seconds)

    def _turn(self) -> None:
        now = time.perf_counter()
        self.seconds[self._stack[-1]] += now - self._since
        self._since = now

    def _event(self, event: str, duration_secs: float, **_: Any) -> None:
        """Count what JAX says of tracing, lowering and compiling, in seconds until now."""
        if event.startswith(COMPILING):
            self.programs += event == COMPILED
            self.compiled(duration_secs)

    def compiled(self, seconds: float) -> None:
        """Take the last seconds for compilation, but for those that were taken for it before."""
        # A program is traced inside another one, whose event comes later and has both.
        end = time.perf_counter()
        inside = [one for one in self._compiled if one[0] >= end - seconds]
        new = seconds - sum(last - first for first, last in inside)
        self._compiled = [one for one in self._compiled if one not in inside]
        self._compiled.append((end - seconds, end))
        self._turn()
        self.seconds[self._stack[-1]] -= new
        self.seconds[COMPILE] += new


def watch(clock: Clock) -> None:
    """Make the clock turn for the stages of this process."""
    for stage, places in STAGES.items():
        for place in places:
            _replace(place, functools.partial(_timed, clock, stage))
    for stage, place in LOADED.items():
        _replace(place, functools.partial(_timed_items, clock, stage))
    _replace(LOOK, functools.partial(_timed_look, clock))


def _replace(place: str, wrap: Callable[[Any], Any]) -> None:
    """Replace a function, MODULE:NAME or MODULE:CLASS.NAME, by what `wrap` makes of it."""
    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    setattr(owner, name, wrap(getattr(owner, name)))


def _timed(clock: Clock, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def timed(*arguments: Any, **named: Any) -> Any:
        with clock.stage(stage):
            return function(*arguments, **named)

    return timed


def _timed_items(clock: Clock, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def timed(*arguments: Any, **named: Any) -> Iterator[Any]:
        items = function(*arguments, **named)
        while True:
            with clock.stage(stage):
                item = next(items, None)
            if item is None:
                return
            yield item

    return timed


def _timed_look(clock: Clock, make: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap what makes plain CLIP's program; its answers are waited for, to be told from others'."""

    @functools.wraps(make)
    def timed_make(*arguments: Any) -> Callable[..., Any]:
        look = make(*arguments)

        def timed(*given: Any) -> Any:
            with clock.stage(LOOKING):
                return jax.block_until_ready(look(*given))

        return timed

    return timed_make
