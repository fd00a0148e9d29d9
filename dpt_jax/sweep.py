"""Sweeps: the runs of a protocol, and a runner of many runs in one process."""

import itertools
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from etils import epath
from ml_collections import ConfigDict

from dpt_jax import distributed
from dpt_jax.clip.pretrained import Pretrained, load_clip
from dpt_jax.config import FREE, Value, method_config, shots_in_words, validate
from dpt_jax.configs.common import BASE_TO_NEW, CROSS_DATASET, DOMAIN_SHIFT, FEW_SHOT
from dpt_jax.data.catalogue import DEFAULT_DATASET, EMBEDDED, PAPER_DATASETS, SHIFTED_IMAGENETS
from dpt_jax.data.dataset import digest_of_files, load_dataset
from dpt_jax.errors import UserError
from dpt_jax.evaluation.evaluate import FeatureCache, evaluate
from dpt_jax.evaluation.results import finished, of_same_sources
from dpt_jax.logging import say
from dpt_jax.methods import PROBE, ROWS, TEXT, ZERO_SHOT
from dpt_jax.run import evaluate_run, probe, train_run, with_split
from dpt_jax.training.checkpoints import FOLDER
from dpt_jax.training.process import LockedError, is_locked
from dpt_jax.training.setup import Experiment, compute_dtype, prepare
from dpt_jax.training.workdir import (
    check_same_run,
    evaluation_config,
    evaluation_dir,
    has_config,
    run_dir,
)

# For all runs or, with a method's name before the key, for that method: maple.text_prompt.depth.
Overrides = Mapping[str, Value]

# Default datasets to train on, and other datasets to test the prompts on.
PROTOCOLS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    FEW_SHOT: ((DEFAULT_DATASET,), ()),
    BASE_TO_NEW: ((DEFAULT_DATASET,), ()),
    CROSS_DATASET: (("imagenet",), tuple(name for name in PAPER_DATASETS if name != "imagenet")),
    DOMAIN_SHIFT: (("imagenet",), SHIFTED_IMAGENETS),
}


class Target(NamedTuple):
    """Another dataset, or other classes, to test prompts on: see `evaluation_config`."""

    config: ConfigDict
    overrides: Overrides


class Run(NamedTuple):
    """One training and its tests; one test for zero-shot CLIP.

    Attributes:
      method: One of `dpt_jax.methods.ROWS`.
      config: Validated.
      workdir: Where its results go.
      targets: What else the prompts are tested on.
    """

    method: str
    config: ConfigDict
    workdir: epath.Path
    targets: tuple[Target, ...]

    def __str__(self) -> str:
        data = self.config.dataset
        name = f"{self.method} on {data.name}"
        name += "" if data.classes == "all" else f" ({data.classes} classes)"
        if self.method == ZERO_SHOT:
            return name
        return f"{name}, {shots_in_words(data.shots)}, seed {self.config.seed}"


def plan(
    runs: epath.Path,
    overrides: Overrides,
    protocol: str,
    methods: Sequence[str],
    datasets: Sequence[str],
    targets: Sequence[str],
    shots: Sequence[int],
    seeds: Sequence[int],
) -> list[Run]:
    """Return the runs of a sweep in the folder `runs`, grouped by dataset and method.

    Zero-shot CLIP depends on neither shots nor seeds, so it has one run per dataset. Overrides take
    precedence over published values.

    Raises:
      UserError: A value is impossible or a dataset unknown, for a run or its targets.
    """
    planned = []
    for dataset, method in itertools.product(datasets, methods):
        classes, tested = "all", [(name, "all") for name in targets if name != dataset]
        if protocol == BASE_TO_NEW:
            classes, tested = "base", [(dataset, "new")]
        elsewhere = [
            Target(*_published(method, name, protocol, {**overrides, "dataset.classes": half}))
            for name, half in tested
        ]
        samples = list(itertools.product(shots, seeds))
        for shot, seed in samples[:1] if method == ZERO_SHOT else samples:
            config, _ = _published(method, dataset, protocol, overrides)
            config.dataset.shots, config.dataset.classes, config.seed = shot, classes, seed
            run = Run(method, config, run_dir(runs, config, method), tuple(elsewhere))
            try:
                validate(config)
            except UserError as reason:
                raise UserError(f"{run}: {reason}") from reason
            if config.text_prompt.class_specific and TEXT in ROWS[method].parts and elsewhere:
                raise UserError(
                    f"{run}: text_prompt.class_specific learns a context for each class, which "
                    f"cannot be tested on other classes: leave it out with --protocol={protocol}."
                )
            planned.append(run)
    return planned


def _published(
    method: str, dataset: str, protocol: str, overrides: Overrides
) -> tuple[ConfigDict, Overrides]:
    """Return the published configuration with the method's overrides, and these."""
    of_all = {key: value for key, value in overrides.items() if key.partition(".")[0] not in ROWS}
    of_method = {
        key.removeprefix(f"{method}."): value
        for key, value in overrides.items()
        if key.startswith(f"{method}.")
    }
    own = of_all | of_method
    if dataset in EMBEDDED:  # a bundled dataset has no folder
        own.pop("dataset.root", None)
    config = method_config(method, dataset, protocol)
    config.update_from_flattened_dict(own)
    return config, own


def in_order_of_part(planned: Sequence[Run], number: int, parts: int) -> list[Run]:
    """Return all runs, starting with every `parts`-th one from the `number`-th (from 1) on."""
    places = range(len(planned))
    return [planned[i] for i in sorted(places, key=lambda i: i % parts != number - 1)]


def state(run: Run) -> str:
    """Return the state of a run, by the files of its folder, without reading data or CLIP."""
    if is_locked(run.workdir):
        return "in training in another process"
    try:
        _check_same_sweep(run)
    except UserError as reason:
        return f"has other settings: {reason}"
    tests = [(run.workdir, run.config), *(_tests(run) if has_config(run.workdir) else ())]
    if run.method != PROBE.name and all(finished(*test) for test in tests):
        return "finished"
    return "begun" if (run.workdir / FOLDER).exists() else "to do"


def _check_same_sweep(run: Run) -> None:
    """Raise UserError if the workdir has a run with other settings, backbone or images.

    A resumed run compares backbone and images when it is loaded. A finished one is not loaded.
    """
    fixed = {"clip.weights"}
    if run.config.dataset.source == "folder":
        fixed.add("dataset.root")
    check_same_run(run.config, run.workdir, {*FREE} - fixed)


def _tests(run: Run) -> Iterator[tuple[epath.Path, ConfigDict]]:
    """Yield folders and configurations of the tests of a run's prompts on its targets."""
    for target in run.targets:
        own = {**target.overrides, "init_from": str(run.workdir)}
        config = evaluation_config(target.config, own, True, run.workdir)
        yield evaluation_dir(run.workdir, config), config


class Runner:
    """Executes runs in this process, which loads a backbone and encodes test images once."""

    def __init__(self) -> None:
        self._backbones: dict[tuple[str, str], Pretrained] = {}
        self._features: FeatureCache = {}
        self._digests: dict[str, tuple[str, str]] = {}  # of datasets and their test files

    def __call__(self, run: Run) -> int:
        """Compute the missing results of a run; return how many were missing.

        Raises:
          UserError: As `dpt-jax train` and `dpt-jax eval`, naming all targets that fail.
          LockedError: Another process trains this run.
        """
        if run.method == PROBE.name:  # takes seconds, so it is fitted again each time
            _say_result(probe(run.config, run.workdir, self._prepare))
            return 1
        _check_same_sweep(run)
        made = 0
        # Host 0 decides, so that no host begins a run that the others skip.
        if not distributed.first_says(self._is_finished(run.workdir, run.config)):
            if distributed.first_says(is_locked(run.workdir)):
                raise LockedError(f"{run.workdir} is in use by another training process.")
            trained = train_run(run.config, run.workdir, prepare=self._prepare)
            _say_result(evaluate(*trained, run.workdir))
            made += 1
        failed = []
        for folder, config in _tests(run):
            try:
                if not distributed.first_says(self._is_finished(folder, config)):
                    _say_result(evaluate_run(config, run.workdir, folder, self._prepare)[0])
                    made += 1
            except UserError as reason:  # the other targets are tested
                failed.append(f"on {config.dataset.name}: {reason}")
        if failed:
            raise UserError(" ".join(failed))
        return made

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
        return of_same_sources(workdir, self._backbone(config), *self._digests[key])

    def _backbone(self, config: ConfigDict) -> Pretrained:
        key = config.clip.weights, compute_dtype(config).name
        if key not in self._backbones:
            self._backbones[key] = load_clip(config.clip.weights, compute_dtype(config))
        return self._backbones[key]

    def _prepare(self, config: ConfigDict) -> Experiment:
        experiment = prepare(config, self._backbone(config))
        return experiment._replace(features=self._features)


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
    began = time.monotonic()
    for number, run in enumerate(planned, 1):
        minutes = (time.monotonic() - began) / 60
        say(f"run {number} of {len(planned)}, {minutes:.0f} min so far: {run}")
        try:
            if not execute(run):
                say("  finished before")
        except LockedError as reason:
            say(f"  left to another process: {reason}")
            elsewhere.append(run)
        except Exception as reason:  # a bug in one run must not lose the others
            if jax.process_count() > 1:  # which would wait for this one
                raise
            if isinstance(reason, UserError):
                why = str(reason)
                say(f"  failed: {why}")
            else:
                why = f"{type(reason).__name__}: {reason}"
                traceback.print_exc()
            failed.append((run, why))
        # Compiled programs fit only one dataset, and hold memory maps, whose number is limited.
        if number < len(planned) and planned[number].config.dataset.name != run.config.dataset.name:
            jax.clear_caches()
    return failed, elsewhere
