"""Runs, from a validated configuration to results: one, or the many of a sweep in one process."""

import functools
import itertools
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
from etils import epath
from ml_collections import ConfigDict

from dpt_jax import distributed
from dpt_jax.clip.pretrained import Pretrained, load_clip
from dpt_jax.config import FREE, UNBOUND, Value, method_config, shots_in_words, validate
from dpt_jax.configs.common import BASE_TO_NEW, CROSS_DATASET, DOMAIN_SHIFT, FEW_SHOT
from dpt_jax.data.catalogue import DEFAULT_DATASET, EMBEDDED, PAPER_DATASETS, SHIFTED_IMAGENETS
from dpt_jax.data.dataset import check_images, check_trainable, digest_of_files, load_dataset
from dpt_jax.errors import UserError
from dpt_jax.evaluation import results
from dpt_jax.evaluation.evaluate import evaluate, predict_by_probe, validation_accuracy
from dpt_jax.io import is_remote
from dpt_jax.logging import say
from dpt_jax.methods import PROBE, ROWS, TEXT, ZERO_SHOT
from dpt_jax.training import workdir as workdirs
from dpt_jax.training.checkpoints import FOLDER, Saved, is_prompt_file
from dpt_jax.training.loop import Callback, train
from dpt_jax.training.saved import check_same_run, saved_prompts, training_meta
from dpt_jax.training.setup import Experiment, FeatureCache, compute_dtype, prepare
from dpt_jax.training.workdir import LockedError, is_locked

# Loads data and backbone. In a sweep it caches the backbone for later runs.
Prepare = Callable[[ConfigDict], Experiment]
# For all runs or, with a method's name before the key, for that method: maple.text_prompt.depth.
Overrides = Mapping[str, Value]

# Default datasets to train on, and other datasets to test the prompts on.
PROTOCOLS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    FEW_SHOT: ((DEFAULT_DATASET,), ()),
    BASE_TO_NEW: ((DEFAULT_DATASET,), ()),
    CROSS_DATASET: (("imagenet",), tuple(name for name in PAPER_DATASETS if name != "imagenet")),
    DOMAIN_SHIFT: (("imagenet",), SHIFTED_IMAGENETS),
}


def train_run(
    config: ConfigDict,
    workdir: epath.Path,
    allow_changes: bool = False,
    prepare: Prepare = prepare,
    callbacks: Sequence[Callback] = (),
    profile: int = 0,
) -> tuple[Experiment, Saved]:
    """Train or resume the run of a workdir; return the experiment and its newest prompts.

    Raises:
      UserError: The workdir has a run with other settings or images, and `allow_changes` is false
        or does not cover them, or it is a prompt file.
    """
    if is_prompt_file(workdir):
        raise UserError(
            f"--workdir: {workdir} is a prompt file: evaluate it with --mode=eval, or start "
            "from it with --config.init_from and a folder as --workdir."
        )
    has_run = workdirs.has_config(workdir) or (workdir / FOLDER).exists()
    if (workdir / results.RESULTS_FILE).exists() and not has_run:
        raise UserError(f"{workdir} has results of a probe: use another --workdir.")
    if changed := check_same_run(config, workdir, UNBOUND if allow_changes else FREE):
        say(f"{workdir}: changed settings: {changed}.")
    config = with_split(with_dtype(config, workdir), workdir)
    experiment = prepare(config)
    if experiment.model.config.learns:
        validates = experiment.dataset.val and not experiment.model.config.classifier
        validate = functools.partial(validation_accuracy, experiment) if validates else None
        train(experiment, workdir, allow_changes, callbacks, profile, validate)
    elif not results.has_own_data(experiment, Saved(0, {}, {}), workdir):
        raise UserError(
            f"{workdir} has results of {config.method} on other images: use another --workdir, or "
            "--mode=eval."
        )
    else:
        workdirs.save_config(config, workdir)
        workdirs.write_split(experiment.dataset, workdir)
    return experiment, saved_prompts(experiment, workdir)


def probe(config: ConfigDict, workdir: epath.Path, prepare: Prepare = prepare) -> results.Results:
    """Fit a linear probe to the shots of a zero-shot configuration; return its results.

    The workdir gets the list of training images and the results, but no config.json, which would
    make it a run of zero-shot CLIP.
    """
    config = with_split(with_dtype(config, workdir), workdir)
    experiment = prepare(config)
    check_trainable(experiment.dataset, config)
    check_images(experiment.dataset, config)
    found = predict_by_probe(experiment)
    if distributed.is_first():
        workdir.mkdir(parents=True, exist_ok=True)
    workdirs.write_train_files(experiment.dataset, workdir)
    by = f"validation({len(experiment.dataset.val)})"
    about = training_meta(experiment) | {"method": PROBE.name, "selection": by}
    return results.write_results(experiment, found, Saved(0, {}, about), workdir)


def evaluate_run(
    config: ConfigDict, source: epath.Path, workdir: epath.Path | None, prepare: Prepare = prepare
) -> tuple[results.Results, epath.Path]:
    """Evaluate the newest prompts of `source`, a workdir or a prompt file.

    Return the results and their folder. It is SOURCE/on/DATASET if `workdir` is None, or if it is
    the source and was trained on another dataset or on other classes. Otherwise it is `workdir`.
    """
    config = with_dtype(config, source)
    experiment = prepare(config)
    saved = saved_prompts(experiment, source)
    if workdir == source and not results.has_own_data(experiment, saved, source):
        workdir = None
    if workdir is None:
        workdir = workdirs.evaluation_dir(source, config)
    elif workdir != source and (workdir / FOLDER).exists():
        raise UserError(
            f"--workdir: {workdir} is a run of its own: give another folder for the results of "
            f"the prompts of {source}."
        )
    if workdir != source:
        config.init_from = str(source if is_remote(source) else source.absolute())
    if not (workdir / FOLDER).exists():
        workdirs.save_config(config, workdir)
        workdirs.write_split(experiment.dataset, workdir)
    return evaluate(experiment, saved, workdir), workdir


def with_dtype(config: ConfigDict, workdir: epath.Path) -> ConfigDict:
    """Return the configuration with dtype=auto replaced by float32 or bfloat16.

    It is the type that the workdir was started with, else the default of this device.
    """
    if config.dtype == "auto":
        name = compute_dtype(config).name
        config = config.copy_and_resolve_references()
        config.dtype = workdirs.load_config(workdir).dtype if workdirs.has_config(workdir) else name
    return config


def with_split(config: ConfigDict, workdir: epath.Path) -> ConfigDict:
    """Return the configuration with the split that a workdir was started with.

    Images added since then are not used. A split that the configuration names takes precedence.
    """
    own = workdir / workdirs.SPLIT_FILE
    if config.dataset.source == "folder" and not config.dataset.split and own.exists():
        config = config.copy_and_resolve_references()
        config.dataset.split = str(own)
    return config


class Target(NamedTuple):
    """Another dataset, or other classes, to test prompts on: see `evaluation_config`."""

    config: ConfigDict
    overrides: Overrides


class Run(NamedTuple):
    """One training and its tests; one test for zero-shot CLIP."""

    method: str  # of `dpt_jax.methods.ROWS`
    config: ConfigDict
    workdir: epath.Path
    targets: tuple[Target, ...]  # what else the prompts are tested on
    refused: str = ""  # why the settings are impossible; the run fails when it is reached

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
            refused = ""
            try:
                validate(config)
            except UserError as reason:
                refused = str(reason)
            if config.text_prompt.class_specific and TEXT in ROWS[method].parts and elsewhere:
                refused = (
                    "text_prompt.class_specific learns a context for each class, which cannot be "
                    f"tested on other classes: leave it out with --protocol={protocol}."
                )
            workdir = workdirs.run_dir(runs, config, method)
            planned.append(Run(method, config, workdir, tuple(elsewhere), refused))
    return planned


def _published(
    method: str, dataset: str, protocol: str, overrides: Overrides
) -> tuple[ConfigDict, Overrides]:
    """Return the published configuration with the method's overrides, and these overrides."""
    own: dict[str, Value] = {}
    for key, value in overrides.items():
        whose, _, rest = key.partition(".")
        if whose == method:
            own[rest] = value
        elif whose not in ROWS:
            own.setdefault(key, value)
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
    if run.refused:
        return f"refused: {run.refused}"
    if is_locked(run.workdir):
        return "in training in another process"
    try:
        _check_same_sweep(run)
    except UserError as reason:
        return f"has other settings: {reason}"
    targets = run.targets if workdirs.has_config(run.workdir) else ()
    tests = [(run.workdir, run.config), *(_test(run, target) for target in targets)]
    if run.method != PROBE.name and all(results.finished(*test) for test in tests):
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


def _test(run: Run, target: Target) -> tuple[epath.Path, ConfigDict]:
    """Return folder and configuration of the test of a run's prompts on a target."""
    own = {**target.overrides, "init_from": str(run.workdir)}
    config = workdirs.evaluation_config(target.config, own, True, run.workdir)
    return workdirs.evaluation_dir(run.workdir, config), config


class Runner:
    """Executes runs in this process, which loads a backbone and encodes test images once."""

    def __init__(self) -> None:
        self._backbones: dict[tuple[str, str], Pretrained] = {}
        self._features: FeatureCache = {}
        self._digests: dict[str, tuple[str, str]] = {}  # of datasets and their test files

    def __call__(self, run: Run) -> int:
        """Compute the missing results of a run; return how many were missing.

        Raise LockedError if another process trains it.
        """
        if run.refused:
            raise UserError(run.refused)
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
        for target in run.targets:
            try:
                folder, config = _test(run, target)
                if not distributed.first_says(self._is_finished(folder, config)):
                    _say_result(evaluate_run(config, run.workdir, folder, self._prepare)[0])
                    made += 1
            except UserError as reason:  # the other targets are tested
                failed.append(f"on {target.config.dataset.name}: {reason}")
        if failed:
            raise UserError(" ".join(failed))
        return made

    def _is_finished(self, workdir: epath.Path, config: ConfigDict) -> bool:
        """Return whether a workdir has the results, of the current data and CLIP."""
        if not results.finished(workdir, config):
            return False
        data = with_split(config, workdir).dataset.copy_and_resolve_references()
        data.shots, data.sample = 1, ""  # the whole dataset counts
        key = f"{data.to_json(sort_keys=True)} {config.seed}"
        if key not in self._digests:
            dataset = load_dataset(data, config.seed)
            self._digests[key] = dataset.digest, digest_of_files(dataset)
        return results.of_same_sources(workdir, self._backbone(config), *self._digests[key])

    def _backbone(self, config: ConfigDict) -> Pretrained:
        key = config.clip.weights, compute_dtype(config).name
        if key not in self._backbones:
            self._backbones[key] = load_clip(config.clip.weights, compute_dtype(config))
        return self._backbones[key]

    def _prepare(self, config: ConfigDict) -> Experiment:
        experiment = prepare(config, self._backbone(config))
        return experiment._replace(features=self._features)


def _say_result(found: results.Results) -> None:
    classes = "" if found["classes"] == "all" else f", {found['classes']} classes"
    accuracy, images = 100 * found["accuracy"], found["n"]
    say(f"  {accuracy:.1f} % of {images} test images of {found['dataset']}{classes}")


def sweep(planned: Sequence[Run]) -> tuple[list[tuple[Run, str]], list[Run]]:
    """Execute the runs in order; a run that fails does not stop the others.

    Return the runs that failed, with reasons, and those that another process trains.
    """
    failed: list[tuple[Run, str]] = []
    elsewhere: list[Run] = []
    execute, began, made = Runner(), time.monotonic(), 0
    for number, run in enumerate(planned, 1):
        left = ""
        if made:  # runs that were finished before took no time
            minutes = (time.monotonic() - began) / made * (len(planned) - number + 1) / 60
            left = f", at most {minutes:.0f} min left"
        say(f"run {number} of {len(planned)}{left}: {run}")
        try:
            if execute(run):
                made += 1
            else:
                say("  finished before")
        except LockedError as reason:
            say(f"  left to another process: {reason}")
            elsewhere.append(run)
        except Exception as reason:  # a bug in one run must not lose the others
            if jax.process_count() > 1:  # which would wait for this one
                raise
            why = str(reason)
            if not isinstance(reason, UserError):
                why = f"{type(reason).__name__}: {reason}"
                traceback.print_exc()
            say(f"  failed: {why}")
            failed.append((run, why))
        # Compiled programs fit only one dataset, and hold memory maps, whose number is limited.
        if number < len(planned) and planned[number].config.dataset.name != run.config.dataset.name:
            jax.clear_caches()
    return failed, elsewhere
