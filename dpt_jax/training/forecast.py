"""What a sweep would do and cost, before it runs."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from etils import epath

from dpt_jax import settings
from dpt_jax.errors import UserError
from dpt_jax.evaluation.provenance import finished
from dpt_jax.methods import PROBE
from dpt_jax.runs import check_same_sweep, with_dtype
from dpt_jax.storage.lock import is_locked
from dpt_jax.training.checkpoints import FOLDER
from dpt_jax.training.cost import Cost, Costs, Seen
from dpt_jax.training.grid import Overrides, Run, run_config, target_config
from dpt_jax.training.metrics import METRICS_FILE
from dpt_jax.training.time_left import in_words

FINISHED, LOCKED, BEGUN, TO_DO = "finished", "being trained by another process", "begun", "to do"
REFUSED = "made with other settings"
AHEAD = (BEGUN, TO_DO)
TERA, GIGA = 1e12, 1e9


class Line(NamedTuple):
    """One run of a plan: how far it is, and what it costs; operations with its new looks."""

    run: Run
    state: str
    cost: Cost | None
    flop: float


def plan_in_words(planned: Sequence[Run], runs: epath.Path, overrides: Overrides) -> list[str]:
    """Return what a sweep would do: a line a run, then all together.

    Raise UserError for wrong weights.
    """
    costs, seen = Costs(overrides), Seen()
    lines = []
    for run in planned:
        state, cost = state_of(run, runs, overrides), costs.of(run)
        flop = seen.add(cost) if cost and state in AHEAD else 0.0
        lines.append(Line(run, state, cost, flop))
    rates = rates_of_finished(lines, runs, overrides)
    return [
        *(_line(one, rates) for one in lines),
        "",
        _states(lines, runs),
        *_together([one for one in lines if one.state in AHEAD], rates),
        *_not_read(costs),
    ]


def state_of(run: Run, runs: epath.Path, overrides: Overrides) -> str:
    """Return how far a run is, from what its folder holds."""
    config = run_config(run, overrides)
    workdir = settings.run_dir(runs, config, run.method)
    if is_locked(workdir):
        return LOCKED
    if (workdir / settings.CONFIG_FILE).exists():
        try:
            check_same_sweep(with_dtype(config, workdir), workdir)
        except UserError:
            return REFUSED
    if run.method != PROBE.name and finished(workdir, config):
        for target in run.targets:
            tested = target_config(run, target, overrides, workdir)
            if not finished(settings.evaluation_dir(workdir, tested), tested):
                return BEGUN
        return FINISHED
    return BEGUN if (workdir / FOLDER).exists() else TO_DO


def rates_of_finished(
    lines: Iterable[Line], runs: epath.Path, overrides: Overrides
) -> dict[str, float]:
    """Return operations per second in the trainings of finished runs, by method; "" is of all.

    It is the median over a run's epochs, of which the first one compiles, and then over the runs.
    """
    found: dict[str, list[float]] = {"": []}
    for one in lines:
        if one.state != FINISHED or not one.cost or not one.cost.trained:
            continue
        config = run_config(one.run, overrides)
        images = images_per_second(settings.run_dir(runs, config, one.run.method))
        if images:
            rate = images * one.cost.training / one.cost.trained
            for name in ("", one.run.method):
                found.setdefault(name, []).append(rate)
    return {name: statistics.median(rates) for name, rates in found.items() if rates}


def images_per_second(workdir: epath.Path) -> float:
    """Return the median over a run's epochs of its metrics, 0 where it has none."""
    try:
        lines = (workdir / METRICS_FILE).read_text(encoding="utf-8").splitlines()
        return float(statistics.median(json.loads(line)["images_per_s"] for line in lines))
    except (OSError, ValueError, KeyError, TypeError, statistics.StatisticsError):
        return 0.0


def _line(one: Line, rates: Mapping[str, float]) -> str:
    if one.state not in AHEAD:
        return f"{one.run}: {one.state}"
    begun = f"{BEGUN}, " if one.state == BEGUN else ""
    if one.cost is None:
        return f"{one.run}: {begun}cost not known"
    seconds = _seconds([one], rates)
    time = "" if seconds is None else f", {in_words(seconds)}"
    trained = f"{one.cost.trained:,} images to train on, " if one.cost.trained else ""
    return f"{one.run}: {begun}{trained}{one.cost.tested:,} to test on, {_tflop(one.flop)}{time}"


def _tflop(flop: float) -> str:
    tera = flop / TERA
    return f"{tera:,.0f} Tflop" if tera >= 100 else f"{tera:.3g} Tflop"


def _states(lines: Sequence[Line], runs: epath.Path) -> str:
    counted = [(state, sum(one.state == state for one in lines)) for state in
               (FINISHED, LOCKED, REFUSED, *AHEAD)]  # fmt: skip
    parts = ", ".join(f"{count} {state}" for state, count in counted if count)
    return f"{len(lines)} runs in {runs}: {parts}."


def _together(lines: Sequence[Line], rates: Mapping[str, float]) -> list[str]:
    """Return what is to be done in all: images, operations, time and memory."""
    known = [(one.run, one.cost) for one in lines if one.cost]
    if not known:
        return []
    trained, tested = (sum(getattr(cost, n) for _, cost in known) for n in ("trained", "tested"))
    unknown = len(lines) - len(known)
    without = f", without {unknown} runs whose cost is not known" if unknown else ""
    seconds = _seconds(lines, rates)
    time = (
        "unknown until a first run has finished, whose metrics say how fast this is here"
        if seconds is None
        else f"about {in_words(seconds)} at the rate of the trainings finished here; to start, "
        "to compile and to read test images comes on top"
    )
    run, largest = max(known, key=lambda pair: pair[1].weights + pair[1].kept)
    return [
        f"to do: {trained:,} images to train on, {tested:,} to test on, "
        f"{_tflop(sum(one.flop for one in lines))}{without}.",
        f"time: {time}.",
        f"memory of the largest ({run}), on one device in float32: {largest.weights / GIGA:.1f} GB "
        f"of weights, and at least {largest.kept / GIGA:.1f} GB that the backward pass keeps with "
        "train.remat=matmuls; half of it in bfloat16. By a formula: the compiler's own needs come "
        "on top.",
    ]


def _seconds(lines: Iterable[Line], rates: Mapping[str, float]) -> float | None:
    """Return how long runs take at the rates of their methods, None where no rate is known."""
    if not rates:
        return None
    return sum(one.flop / rates.get(one.run.method, rates[""]) for one in lines)


def _not_read(costs: Costs) -> list[str]:
    """Return which datasets are counted by what is published of them, or not at all."""
    lines = []
    published = [name for name, sizes in costs.missing.items() if sizes.classnames]
    if published:
        lines.append(
            f"not read: {', '.join(published)}: their numbers of classes and images are the "
            f"published ones, and their names of classes taken as long as ImageNet's. Of "
            f"{published[0]}: {costs.missing[published[0]].missing}"
        )
    unknown = {name: sizes for name, sizes in costs.missing.items() if not sizes.classnames}
    return [*lines, *(f"not known: {name}: {sizes.missing}" for name, sizes in unknown.items())]
