"""Many runs as one job, which can be stopped and started again."""

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from etils import epath
from ml_collections import ConfigDict

from dpt_jax import distributed, settings
from dpt_jax.clip.pretrained import Pretrained
from dpt_jax.errors import UserError
from dpt_jax.evaluation.features import FeatureCache
from dpt_jax.evaluation.provenance import finished
from dpt_jax.logging import say
from dpt_jax.methods import PROBE
from dpt_jax.runs import (
    check_same_sweep,
    evaluate_run,
    probe,
    train_and_evaluate,
    with_dtype,
)
from dpt_jax.runtime import failures
from dpt_jax.storage.lock import is_locked
from dpt_jax.training.grid import Overrides, Run, Target, run_config, target_config
from dpt_jax.training.setup import Experiment, prepare

MANY_MAPS = 30_000  # of which half are of programs that later runs do not use


class ElsewhereError(UserError):
    """Another process trains in the workdir of a run, and will finish it."""


class Ended(NamedTuple):
    """How a run ended: finished, failed and why, or left to another process.

    made: how many results were made that were not there before.
    """

    failed: str = ""
    elsewhere: bool = False
    made: int = 0


class Outcome(NamedTuple):
    """The runs of a sweep that were not finished here: those that failed, and why; others'."""

    failed: list[tuple[Run, str]]
    elsewhere: list[Run]

    def add(self, run: Run, ended: Ended) -> None:
        """Count a run that has ended."""
        if ended.failed:
            self.failed.append((run, ended.failed))
        if ended.elsewhere:
            self.elsewhere.append(run)


class Runner:
    """Runs one after the other in this process, which reads backbones and test images once."""

    def __init__(self, runs: epath.Path, overrides: Overrides) -> None:
        self.runs, self.overrides = runs, overrides
        self.backbones: dict[tuple[str, str], Pretrained] = {}
        self._features: FeatureCache = {}

    def __call__(self, run: Run) -> int:
        """Make the results of a run that are not there yet; return how many were made.

        Raise UserError as main.py ends with one.
        """
        config = run_config(run, self.overrides)
        workdir = settings.run_dir(self.runs, config, run.method)
        config = with_dtype(config, workdir)
        if run.method == PROBE.name:  # fitted anew each time, which takes seconds
            with failures.run():
                _say_result(probe(config, workdir, self._prepare))
            return 1
        check_same_sweep(config, workdir)
        made = 0
        # The answer of host 0, so that no host begins a run that the others skip.
        if not distributed.first_says(finished(workdir, config)):
            if distributed.first_says(is_locked(workdir)):
                raise ElsewhereError(f"{workdir} is being trained in by another process.")
            with failures.run():
                _say_result(train_and_evaluate(config, workdir, prepare=self._prepare))
            made += 1
        failed = []
        for target in run.targets:
            try:
                made += self._test(run, target, workdir)
            except UserError as reason:  # the other targets go on
                failed.append(f"on {target.dataset}: {reason}")
        if failed:
            raise UserError(" ".join(failed))
        return made

    def _test(self, run: Run, target: Target, workdir: epath.Path) -> bool:
        """Test the prompts of `workdir` on a target; return False where that was done before."""
        config = target_config(run, target, self.overrides, workdir)
        target_dir = settings.evaluation_dir(workdir, config)
        if distributed.first_says(finished(target_dir, config)):
            return False
        with failures.run():
            _say_result(evaluate_run(config, workdir, target_dir, self._prepare))
        return True

    def _prepare(self, config: ConfigDict) -> Experiment:
        which = (config.clip.weights, config.dtype)
        experiment = prepare(config, self.backbones.get(which))
        self.backbones[which] = experiment.pretrained
        return experiment._replace(features=self._features)


def _say_result(results: Mapping[str, Any]) -> None:
    classes = "" if results["classes"] == "all" else f", {results['classes']} classes"
    right, images = 100 * results["accuracy"], results["n"]
    say(f"  {right:.1f} % of {images} test images of {results['dataset']}{classes}")


def sweep(
    planned: Sequence[Run],
    execute: Callable[[Run], int],
    left: Callable[[Sequence[Run]], str] = lambda _: "",
) -> Outcome:
    """Execute the runs in order.  left: from the runs ahead to words on how long they will take."""
    outcome = Outcome([], [])
    began = time.monotonic()
    for number, run in enumerate(planned, 1):
        took = f", {(time.monotonic() - began) / 60:.0f} min so far" if number > 1 else ""
        say(f"run {number} of {len(planned)}{took}{left(planned[number - 1 :])}: {run}")
        outcome.add(run, attempt(run, execute))
    return outcome


def attempt(run: Run, execute: Callable[[Run], int]) -> Ended:
    """Execute one run, and return how it ended.  Raise what ends the whole sweep."""
    try:
        made = execute(run)
        if not made:
            say("  finished before")
    except ElsewhereError as reason:
        say(f"  left to another process: {reason}")
        return Ended(elsewhere=True)
    except UserError as reason:
        say(f"  failed: {reason}")
        return Ended(failed=str(reason))
    except Exception as reason:  # a bug in one run is no reason to lose the others
        traceback.print_exc()
        return Ended(failed=f"{type(reason).__name__}: {reason}")
    finally:
        # Every compiled program keeps memory maps, of which Linux grants a process 65,530.
        if distributed.memory_maps() > MANY_MAPS:
            jax.clear_caches()
    return Ended(made=made)
