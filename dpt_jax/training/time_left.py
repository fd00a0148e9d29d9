"""How long a sweep still takes, while it runs."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dpt_jax.clip.pretrained import Pretrained
from dpt_jax.errors import UserError
from dpt_jax.training.cost import Cost, Costs, Seen
from dpt_jax.training.grid import Overrides, Run

FEWEST_RUNS = 3  # that say how long others take


class TimeLeft:
    """Says how long a sweep still takes, by the runs that this process has made.

    A run takes a + b · operations: starting and compiling are in a.
    """

    def __init__(self, overrides: Overrides, loaded: Mapping[tuple[str, str], Pretrained]) -> None:
        """loaded: the backbones that the sweep has read, as it reads them."""
        self._seen, self._costs = Seen(), Costs(overrides, loaded, read_all=False)
        self._made: list[tuple[float, float]] = []  # operations and seconds of a run

    def timed(self, execute: Callable[[Run], int]) -> Callable[[Run], int]:
        """Return what executes a run and notes how long that took, if anything was made."""

        def timed(run: Run) -> int:
            began = time.monotonic()
            made = execute(run)
            if made:
                self.ran(run, time.monotonic() - began)
            return made

        return timed

    def ran(self, run: Run, seconds: float) -> None:
        """Note that a run was made, in so many seconds."""
        if cost := self._cost(run):
            self._made.append((self._seen.add(cost), seconds))

    def words(self, ahead: Sequence[Run], at_once: int = 1) -> str:
        """Return such as ", about 3 h left" for the runs ahead, "" while that is not known.

        at_once: how many of them run beside each other.
        """
        fit = line_through(self._made)
        costs = [self._cost(run) for run in ahead] if fit else []
        if not fit or not costs or None in costs:
            return ""
        seen = Seen(self._seen.looks)
        seconds = sum(fit.start + fit.rate * seen.add(cost) for cost in costs if cost)
        return f", about {in_words(seconds / at_once)} left"

    def _cost(self, run: Run) -> Cost | None:
        try:
            return self._costs.of(run)
        except UserError:  # the run itself will say what is wrong
            return None


class Fit(NamedTuple):
    """Seconds of a run: start + rate · operations."""

    start: float
    rate: float


def line_through(points: Sequence[tuple[float, float]]) -> Fit | None:
    """Return the least squares of operations and seconds, without negative parts.

    None while there are fewer than three runs, or where dearer ones did not take longer.
    """
    if len(points) < FEWEST_RUNS:
        return None
    flop, seconds = np.array(points).T
    away = flop - flop.mean()
    rate = (away @ seconds) / max(away @ away, 1.0)
    start = seconds.mean() - rate * flop.mean()
    if start < 0:
        start, rate = 0.0, (flop @ seconds) / (flop @ flop)
    return Fit(float(start), float(rate)) if rate > 0 else None


def in_words(seconds: float) -> str:
    """Return a duration in the unit that people would say it in."""
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 1):.0f} s"
