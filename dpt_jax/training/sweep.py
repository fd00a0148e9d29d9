"""Runs methods × datasets × shots × seeds as one job, which can be stopped and started again.

    python -m dpt_jax.sweep --datasets=eurosat,dtd --config.dataset.root=DATA [--methods=zeroshot,coop,vpt,vlp,dpt]
        [--shots=1,2,4,8,16] [--seeds=1,2,3] [--protocol=few-shot] [--runs=runs] [--config.KEY=VALUE …]

Protocols:
    few-shot               train and test on each of the datasets
    base-to-new            train on the base half of the classes, test on both halves
    cross-dataset          train on ImageNet, test the same prompts on the paper's other ten datasets
    domain-generalization  train on ImageNet, test the same prompts on its four shifted variants

--datasets and --targets replace what the last two train and test on. Runs that
have their results are skipped, a run that was stopped goes on, and one that
fails is reported at the end, with exit code 1, and the others go on.
`python -m dpt_jax.report RUNS` makes the tables and the figure.
"""

import importlib
import itertools
import json
import pathlib
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from absl import flags
from ml_collections import ConfigDict

from dpt_jax.clip.pretrained import Pretrained
from dpt_jax.commands import flags as cli
from dpt_jax.data.catalogue import PAPER_DATASETS, SHIFTED_IMAGENETS
from dpt_jax.errors import UserError
from dpt_jax.inference.evaluation import METHODS, PREDICTIONS_FILE, RESULTS_FILE
from dpt_jax.inference.experiment import Experiment, prepare
from dpt_jax.runtime import devices, failures
from dpt_jax.runtime.console import say
from dpt_jax.settings import config as configs
from dpt_jax.training.run import evaluate_run, train_and_evaluate, with_dtype

# What --datasets and --targets are where they are not given.
PROTOCOLS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "few-shot": (("emoji",), ()),
    "base-to-new": (("emoji",), ()),
    "cross-dataset": (("imagenet",), tuple(name for name in PAPER_DATASETS if name != "imagenet")),
    "domain-generalization": (("imagenet",), SHIFTED_IMAGENETS),
}
# Keys that the sweep varies itself, and the flag that says how.
SWEPT = {
    "dataset.name": "--datasets",
    "dataset.shots": "--shots",
    "dataset.classes": "--protocol",
    "seed": "--seeds",
    "init_from": "--protocol",
}


class Target(NamedTuple):
    """What else a run's prompts are tested on."""

    dataset: str
    classes: str


class Run(NamedTuple):
    """One training, or zero-shot evaluation, and what its prompts are tested on besides."""

    method: str
    dataset: str
    shots: int
    seed: int
    classes: str
    targets: tuple[Target, ...]


def plan(
    protocol: str,
    methods: Sequence[str],
    datasets: Sequence[str],
    targets: Sequence[str],
    shots: Sequence[int],
    seeds: Sequence[int],
) -> list[Run]:
    """The runs of a sweep, all methods of a dataset together. Zero-shot needs one, whatever shots and seeds."""
    runs = []
    for dataset, method in itertools.product(datasets, methods):
        if protocol == "base-to-new":
            classes, others = "base", [Target(dataset, "new")]
        else:
            classes, others = (
                "all",
                [Target(target, "all") for target in targets if target != dataset],
            )
        once = method == "zeroshot"
        samples = itertools.product(shots[:1] if once else shots, seeds[:1] if once else seeds)
        runs += [Run(method, dataset, s, seed, classes, tuple(others)) for s, seed in samples]
    return runs


def run_config(run: Run, overrides: Mapping[str, Any]) -> ConfigDict:
    """The configuration of a run; what the command line sets wins over the method's and the dataset's own."""
    config = _method_config(run.method, run.dataset, overrides)
    config.dataset.shots, config.dataset.classes, config.seed = run.shots, run.classes, run.seed
    configs.check(config)
    return config


def target_config(
    run: Run, target: Target, overrides: Mapping[str, Any], workdir: pathlib.Path
) -> ConfigDict:
    """The configuration that tests the prompts of `workdir` on a target."""
    named = _method_config(run.method, target.dataset, overrides)
    source = {"init_from": str(workdir), "dataset.classes": target.classes}
    return configs.resolve(
        named, {**_meant_for(named, overrides), **source}, True, workdir, evaluate=True
    )


def _method_config(method: str, dataset: str, overrides: Mapping[str, Any]) -> ConfigDict:
    config = importlib.import_module(f"configs.{method}").get_config(dataset)
    for key, value in _meant_for(config, overrides).items():
        configs.set_key(config, key, value)
    if configs.method(config) != method:
        raise UserError(
            f"the settings given with --config make {configs.method(config)} of {method}."
        )
    return config


def _meant_for(config: ConfigDict, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides but for sizes of parts that the method does not have, which would make another method of it."""
    absent = {
        f"{section}.{key}" for section, key in configs.SWITCHES.items() if not config[section][key]
    }
    return {key: value for key, value in overrides.items() if key not in absent}


class Runner:
    """Runs one after the other in this process, which loads each backbone once."""

    def __init__(self, runs: pathlib.Path, overrides: Mapping[str, Any]) -> None:
        self.runs, self.overrides = runs, overrides
        self._backbones: dict[tuple[str, str], Pretrained] = {}

    def __call__(self, run: Run) -> int:
        """Does what is missing of a run; how many results were. Raises UserError as main.py ends with one."""
        config = run_config(run, self.overrides)
        workdir = configs.run_dir(self.runs, config)
        config = with_dtype(config, workdir)
        # Also of a finished run: one of another backbone, or on another folder, is not of this sweep.
        fixed = (
            ("clip.weights", "dataset.root")
            if config.dataset.source == "folder"
            else ("clip.weights",)
        )
        free = tuple(key for key in configs.FREE_ON_RESUME if key not in fixed)
        configs.check_workdir(config, workdir, free)
        made = 0
        # The answer of host 0, so that no host begins a run that the others skip.
        if not devices.first_says(_finished(workdir, config)):
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

    def _test(self, run: Run, target: Target, workdir: pathlib.Path) -> bool:
        """Tests the prompts of `workdir` on a target, unless that was done."""
        config = target_config(run, target, self.overrides, workdir)
        target_dir = configs.evaluation_dir(workdir, config)
        if devices.first_says(_finished(target_dir, config)):
            return False
        with failures.run():
            _say_result(evaluate_run(config, workdir, target_dir, self._prepare))
        return True

    def _prepare(self, config: ConfigDict) -> Experiment:
        which = (config.clip.weights, config.dtype)
        experiment = prepare(config, self._backbones.get(which))
        self._backbones[which] = experiment.pretrained
        return experiment


def _finished(workdir: pathlib.Path, config: ConfigDict) -> bool:
    """Whether a workdir has the results that the configuration asks for."""
    try:
        results = json.loads((workdir / RESULTS_FILE).read_text(encoding="utf-8"))
        tested_on = results["dataset"], results["classes"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    # A workdir can have been evaluated by hand on something else.
    wanted = config.dataset.name, config.dataset.classes
    return tested_on == wanted and (
        not config.eval.save_logits or (workdir / PREDICTIONS_FILE).exists()
    )


def _say_result(results: Mapping[str, Any]) -> None:
    classes = "" if results["classes"] == "all" else f", {results['classes']} classes"
    say(
        f"  {100 * results['accuracy']:.1f} % of {results['n']} test images of {results['dataset']}{classes}"
    )


def sweep(planned: Sequence[Run], execute: Callable[[Run], int]) -> list[tuple[Run, str]]:
    """Executes the runs in order; those that failed, and why."""
    failed = []
    began = time.monotonic()
    for number, run in enumerate(planned, 1):
        took = f", {(time.monotonic() - began) / 60:.0f} min so far" if number > 1 else ""
        say(f"run {number} of {len(planned)}{took}: {describe(run)}")
        try:
            if not execute(run):
                say("  finished before")
        except UserError as reason:
            failed.append((run, str(reason)))
            say(f"  failed: {reason}")
        except Exception as reason:  # a bug in one run is no reason to lose the others
            failed.append((run, f"{type(reason).__name__}: {reason}"))
            traceback.print_exc()
        # Every compiled program keeps memory maps, of which Linux grants a process 65,530.
        jax.clear_caches()
    return failed


def describe(run: Run) -> str:
    """A run in words."""
    sample = (
        ""
        if run.method == "zeroshot"
        else f", {configs.shots_in_words(run.shots)}, seed {run.seed}"
    )
    return f"{run.method} on {run.dataset}{'' if run.classes == 'all' else f' ({run.classes} classes)'}{sample}"


def define_flags() -> None:
    """The flags of the sweep; --config.KEY=VALUE holds for all its runs."""
    flags.DEFINE_list("methods", list(METHODS), f"Some of {', '.join(METHODS)}.")
    flags.DEFINE_list(
        "datasets",
        None,
        "What to train on; default emoji, or ImageNet where it is tested elsewhere.",
    )
    flags.DEFINE_list("targets", None, "What else to test the prompts on.")
    flags.DEFINE_list("shots", ["1", "2", "4", "8", "16"], "Images a class, -1 for all.")
    flags.DEFINE_list("seeds", ["1", "2", "3"], "Seeds of sample, prompts and augmentation.")
    flags.DEFINE_enum(
        "protocol", "few-shot", list(PROTOCOLS), "What is trained and tested on what."
    )
    flags.DEFINE_string("runs", "runs", "The folder of the runs.")


def numbers(flag: str) -> list[int]:
    """A comma-separated flag as whole numbers."""
    texts: list[str] = flags.FLAGS[flag].value or []
    try:
        return [int(text) for text in texts]
    except ValueError as reason:
        raise UserError(
            f"--{flag}={','.join(texts)}: give whole numbers, such as 1,2,4."
        ) from reason


def main(argv: Sequence[str]) -> None:
    values = flags.FLAGS
    if len(argv) > 1:
        raise UserError(f"unknown argument {argv[1]!r}: see `python -m dpt_jax.sweep --help`.")
    _, overrides, _ = cli.flag_config()
    if not values["config"].using_default_value or values.workdir:
        raise UserError(
            "the sweep makes its runs from --methods and --datasets, in --runs: --workdir and "
            "--config=FILE are for main.py."
        )
    for key, flag in SWEPT.items():
        if key in overrides:
            raise UserError(f"--config.{key}: the sweep varies it, use {flag}.")
    unknown = [method for method in values.methods if method not in METHODS]
    if unknown:
        raise UserError(f"--methods: {unknown[0]!r} is not one of {', '.join(METHODS)}.")
    datasets, targets = PROTOCOLS[values.protocol]
    if values.targets and values.protocol == "base-to-new":
        raise UserError(
            "--targets: base-to-new tests on the other half of the classes, and on no other dataset."
        )
    datasets = values.datasets or datasets
    targets = targets if values.targets is None else values.targets
    planned = plan(
        values.protocol, values.methods, datasets, targets, numbers("shots"), numbers("seeds")
    )
    if not planned:
        raise UserError(
            "there is nothing to run: --methods, --datasets, --shots and --seeds need a value each."
        )
    # An unknown dataset or a value no run can have ends the sweep before it begins.
    for run in planned:
        run_config(run, overrides)
        for target in run.targets:
            _method_config(run.method, target.dataset, overrides)
    cli.start()
    runs = pathlib.Path(values.runs)
    failed = sweep(planned, Runner(runs, overrides))
    say(
        f"{len(planned) - len(failed)} of {len(planned)} runs are finished; tables: python -m dpt_jax.report {runs}"
    )
    for run, why in failed:
        say(f"failed: {describe(run)}: {why}")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    cli.define_flags()
    cli.define_host_flags()
    define_flags()
    cli.run(main)
