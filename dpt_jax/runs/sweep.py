"""Sweeps: the runs of a protocol, and a runner of many runs in one process."""

import itertools
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from etils import epath
from ml_collections import ConfigDict

from dpt_jax import distributed
from dpt_jax.clip.pretrained import Pretrained, load_clip
from dpt_jax.config import Value, method_config, shots_in_words, validate
from dpt_jax.configs.common import BASE_TO_NEW, CROSS_DATASET, DOMAIN_SHIFT, FEW_SHOT
from dpt_jax.data.catalogue import DEFAULT_DATASET, EMBEDDED, PAPER_DATASETS, SHIFTED_IMAGENETS
from dpt_jax.data.dataset import digest_of_files, load_dataset
from dpt_jax.errors import UserError
from dpt_jax.evaluation.evaluate import FeatureCache, evaluate
from dpt_jax.evaluation.results import finished, of_same_sources
from dpt_jax.logging import say
from dpt_jax.methods import PROBE, ROWS, TEXT, ZERO_SHOT
from dpt_jax.runs.run import (
    check_same_sweep,
    evaluate_run,
    probe,
    train_run,
    with_split,
)
from dpt_jax.training.checkpoints import FOLDER
from dpt_jax.training.process import LockedError, is_locked
from dpt_jax.training.setup import Experiment, compute_dtype, prepare
from dpt_jax.training.workdir import CONFIG_FILE, evaluation_config, evaluation_dir, run_dir

# For all runs or, with a method's name before the key, for that method: maple.text_prompt.depth.
Overrides = Mapping[str, Value]

# Default datasets to train on, and other datasets to test the prompts on.
PROTOCOLS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    FEW_SHOT: ((DEFAULT_DATASET,), ()),
    BASE_TO_NEW: ((DEFAULT_DATASET,), ()),
    CROSS_DATASET: (("imagenet",), tuple(name for name in PAPER_DATASETS if name != "imagenet")),
    DOMAIN_SHIFT: (("imagenet",), SHIFTED_IMAGENETS),
}
# Keys that a sweep sets itself, and the flag that says how.
SWEPT = {
    "method": "--methods",
    "dataset.name": "--datasets",
    "dataset.shots": "--shots",
    "dataset.classes": "--protocol",
    "seed": "--seeds",
    "init_from": "--protocol",
}


class Target(NamedTuple):
    """Another dataset, or other classes, that a run's prompts are tested on."""

    dataset: str
    classes: str


class Run(NamedTuple):
    """One training and its tests; one test for zero-shot CLIP.

    method: one of `dpt_jax.methods.ROWS`.
    """

    method: str
    dataset: str
    shots: int
    seed: int
    classes: str
    targets: tuple[Target, ...]
    protocol: str = FEW_SHOT

    def __str__(self) -> str:
        classes = "" if self.classes == "all" else f" ({self.classes} classes)"
        name = f"{self.method} on {self.dataset}{classes}"
        if self.method == ZERO_SHOT:
            return name
        return f"{name}, {shots_in_words(self.shots)}, seed {self.seed}"


def plan(
    protocol: str,
    methods: Sequence[str],
    datasets: Sequence[str],
    targets: Sequence[str],
    shots: Sequence[int],
    seeds: Sequence[int],
) -> list[Run]:
    """Return the runs of a sweep, grouped by dataset and method.

    Zero-shot CLIP depends on neither shots nor seeds, so it has one run per dataset.
    """
    runs = []
    for dataset, method in itertools.product(datasets, methods):
        classes, tested = "all", [Target(name, "all") for name in targets if name != dataset]
        if protocol == BASE_TO_NEW:
            classes, tested = "base", [Target(dataset, "new")]
        samples = list(itertools.product(shots, seeds))
        for shot, seed in samples[:1] if method == ZERO_SHOT else samples:
            runs.append(Run(method, dataset, shot, seed, classes, tuple(tested), protocol))
    return runs


def in_order_of_part(planned: Sequence[Run], number: int, parts: int) -> list[Run]:
    """Return all runs, starting with every `parts`-th one from the `number`-th (from 1) on."""
    own = planned[number - 1 :: parts]
    return [*own, *(run for run in planned if run not in set(own))]


def run_config(run: Run, overrides: Overrides) -> ConfigDict:
    """Return the checked configuration of a run.  Overrides take precedence over published values.

    Raises:
      UserError: A value is impossible or a dataset unknown, for the run or its targets.
    """
    config = _published(run.method, run.dataset, run.protocol, overrides)
    config.dataset.shots, config.dataset.classes, config.seed = run.shots, run.classes, run.seed
    validate(config)
    if config.text_prompt.class_specific and TEXT in ROWS[run.method].parts and run.targets:
        raise UserError(
            "text_prompt.class_specific learns a context for each class, which cannot be tested on "
            f"other classes: leave it out with --protocol={run.protocol}."
        )
    for target in run.targets:
        _published(run.method, target.dataset, run.protocol, overrides)
    return config


def target_config(
    run: Run, target: Target, overrides: Overrides, workdir: epath.Path
) -> ConfigDict:
    """Return the configuration that tests the prompts of `workdir` on a target."""
    config = _published(run.method, target.dataset, run.protocol, overrides)
    source = {"init_from": str(workdir), "dataset.classes": target.classes}
    own = {**_own(run.method, target.dataset, overrides), **source}
    return evaluation_config(config, own, True, workdir)


def _published(method: str, dataset: str, protocol: str, overrides: Overrides) -> ConfigDict:
    config = method_config(method, dataset, protocol)
    config.update_from_flattened_dict(_own(method, dataset, overrides))
    return config


def _own(method: str, dataset: str, overrides: Overrides) -> Overrides:
    """Return the overrides of a method on a dataset; a bundled dataset has no folder."""
    without = ("dataset.root",) if dataset in EMBEDDED else ()
    of_all = {key: value for key, value in overrides.items() if key.partition(".")[0] not in ROWS}
    of_method = {
        key.removeprefix(f"{method}."): value
        for key, value in overrides.items()
        if key.startswith(f"{method}.")
    }
    return {key: value for key, value in (of_all | of_method).items() if key not in without}


def state(run: Run, runs: epath.Path, overrides: Overrides) -> str:
    """Return the state of a run, by the files of its folder, without reading data or CLIP."""
    try:
        config = run_config(run, overrides)
    except UserError as reason:
        return f"refused: {reason}"
    workdir = run_dir(runs, config, run.method)
    if is_locked(workdir):
        return "in training in another process"
    try:
        check_same_sweep(config, workdir)
    except UserError as reason:
        return f"has other settings: {reason}"
    tests = [(workdir, config)]
    for target in run.targets if (workdir / CONFIG_FILE).exists() else ():
        tested = target_config(run, target, overrides, workdir)
        tests.append((evaluation_dir(workdir, tested), tested))
    if run.method != PROBE.name and all(finished(*test) for test in tests):
        return "finished"
    return "begun" if (workdir / FOLDER).exists() else "to do"


class Runner:
    """Executes runs in this process, which loads a backbone and encodes test images once."""

    def __init__(self, runs: epath.Path, overrides: Overrides) -> None:
        self.runs, self.overrides = runs, overrides
        self.backbones: dict[tuple[str, str], Pretrained] = {}
        self._features: FeatureCache = {}
        self._digests: dict[str, tuple[str, str]] = {}  # of datasets and their test files

    def __call__(self, run: Run) -> int:
        """Compute the missing results of a run; return how many were missing.

        Raises:
          UserError: As `dpt-jax train` and `dpt-jax eval`, naming all targets that fail.
          LockedError: Another process trains this run.
        """
        config = run_config(run, self.overrides)
        workdir = run_dir(self.runs, config, run.method)
        if run.method == PROBE.name:  # takes seconds, so it is fitted again each time
            _say_result(probe(config, workdir, self._prepare))
            return 1
        check_same_sweep(config, workdir)
        made = 0
        # Host 0 decides, so that no host begins a run that the others skip.
        if not distributed.first_says(self._is_finished(workdir, config)):
            if distributed.first_says(is_locked(workdir)):
                raise LockedError(f"{workdir} is in use by another training process.")
            trained = train_run(config, workdir, prepare=self._prepare)
            _say_result(evaluate(*trained, workdir))
            made += 1
        failed = []
        for target in run.targets:
            try:
                made += self._test(run, target, workdir)
            except UserError as reason:  # the other targets are tested
                failed.append(f"on {target.dataset}: {reason}")
        if failed:
            raise UserError(" ".join(failed))
        return made

    def _test(self, run: Run, target: Target, workdir: epath.Path) -> bool:
        """Test the prompts of `workdir` on a target; return False if that was done before."""
        config = target_config(run, target, self.overrides, workdir)
        target_dir = evaluation_dir(workdir, config)
        if distributed.first_says(self._is_finished(target_dir, config)):
            return False
        results, _ = evaluate_run(config, workdir, target_dir, self._prepare)
        _say_result(results)
        return True

    def _is_finished(self, workdir: epath.Path, config: ConfigDict) -> bool:
        """Return whether a workdir has the results, of the current data and CLIP."""
        if not finished(workdir, config):
            return False
        data = with_split(config, workdir).dataset.copy_and_resolve_references()
        data.shots, data.sample = 1, ""  # the whole dataset counts
        key = f"{data.to_json(sort_keys=True)} {config.seed}"
        if key not in self._digests:
            dataset = load_dataset(data, config.seed)
            self._digests[key] = dataset.digest, digest_of_files(dataset)
        clip = _name_of_clip(config)
        if clip not in self.backbones:
            self.backbones[clip] = load_clip(config.clip.weights, compute_dtype(config))
        return of_same_sources(workdir, self.backbones[clip], *self._digests[key])

    def _prepare(self, config: ConfigDict) -> Experiment:
        key = _name_of_clip(config)
        experiment = prepare(config, self.backbones.get(key))
        self.backbones[key] = experiment.pretrained
        return experiment._replace(features=self._features)


def _name_of_clip(config: ConfigDict) -> tuple[str, str]:
    return config.clip.weights, compute_dtype(config).name


def _say_result(results: Mapping[str, Any]) -> None:
    classes = "" if results["classes"] == "all" else f", {results['classes']} classes"
    accuracy, images = 100 * results["accuracy"], results["n"]
    say(f"  {accuracy:.1f} % of {images} test images of {results['dataset']}{classes}")


def sweep(
    planned: Sequence[Run], execute: Callable[[Run], int]
) -> tuple[list[tuple[Run, str]], list[Run]]:
    """Execute the runs in order; a run that fails does not stop the others.

    Returns:
      The runs that failed, with reasons, and those that another process trains.
    """
    failed: list[tuple[Run, str]] = []
    elsewhere: list[Run] = []
    began, made = time.monotonic(), 0
    for number, run in enumerate(planned, 1):
        minutes = (time.monotonic() - began) / 60
        took = f", {minutes:.0f} min so far" if number > 1 else ""
        if made:  # finished runs took no time
            left = minutes / made * (len(planned) - number + 1)
            took += f", at most {left:.0f} min left"
        say(f"run {number} of {len(planned)}{took}: {run}")
        try:
            if execute(run):
                made += 1
            else:
                say("  finished before")
        except LockedError as reason:
            say(f"  left to another process: {reason}")
            elsewhere.append(run)
        except UserError as reason:
            _end_on_several_hosts()
            say(f"  failed: {reason}")
            failed.append((run, str(reason)))
        except Exception as reason:  # a bug in one run must not lose the others
            _end_on_several_hosts()
            traceback.print_exc()
            failed.append((run, f"{type(reason).__name__}: {reason}"))
        # Compiled programs fit only one dataset, and hold memory maps, whose number is limited.
        if number < len(planned) and planned[number].dataset != run.dataset:
            jax.clear_caches()
    return failed, elsewhere


def _end_on_several_hosts() -> None:
    """Re-raise the current error on several hosts, which would otherwise wait for this one."""
    if jax.process_count() > 1:
        raise
