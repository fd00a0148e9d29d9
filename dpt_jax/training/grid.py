"""What a sweep runs: methods x datasets x shots x seeds, and the settings of each run."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from etils import epath
from ml_collections import ConfigDict

from dpt_jax import settings
from dpt_jax.data.catalogue import DEFAULT_DATASET, PAPER_DATASETS, SHIFTED_IMAGENETS
from dpt_jax.methods import ROWS, ZERO_SHOT
from dpt_jax.settings.recipes import BASE_TO_NEW, CROSS_DATASET, DOMAIN_SHIFT, FEW_SHOT

Overrides = Mapping[str, settings.Value]

# What a protocol trains on, and tests on besides, where the command line does not say.
PROTOCOLS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    FEW_SHOT: ((DEFAULT_DATASET,), ()),
    BASE_TO_NEW: ((DEFAULT_DATASET,), ()),
    CROSS_DATASET: (("imagenet",), tuple(name for name in PAPER_DATASETS if name != "imagenet")),
    DOMAIN_SHIFT: (("imagenet",), SHIFTED_IMAGENETS),
}
# Keys that the sweep varies itself, and the flag that says how.
SWEPT = {
    "method": "--methods",
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
    """One training, or one evaluation of plain CLIP, and what the prompts are tested on besides.

    method: one of `dpt_jax.methods.ROWS`.
    """

    method: str
    dataset: str
    shots: int
    seed: int
    classes: str
    targets: tuple[Target, ...]
    protocol: str = FEW_SHOT

    @property
    def learns(self) -> bool:
        """Return whether there is anything to train."""
        return self.method != ZERO_SHOT

    def __str__(self) -> str:
        sample = f", {settings.shots_in_words(self.shots)}, seed {self.seed}" if self.learns else ""
        classes = "" if self.classes == "all" else f" ({self.classes} classes)"
        return f"{self.method} on {self.dataset}{classes}{sample}"


def plan(
    protocol: str,
    methods: Sequence[str],
    datasets: Sequence[str],
    targets: Sequence[str],
    shots: Sequence[int],
    seeds: Sequence[int],
) -> list[Run]:
    """Return the runs of a sweep, all methods of a dataset together.

    What learns nothing needs one run, whatever the shots and seeds.
    """
    runs = []
    for dataset, method in itertools.product(datasets, methods):
        if protocol == BASE_TO_NEW:
            classes, others = "base", [Target(dataset, "new")]
        else:
            classes = "all"
            others = [Target(target, "all") for target in targets if target != dataset]
        once = method == ZERO_SHOT
        samples = itertools.product(shots[:1] if once else shots, seeds[:1] if once else seeds)
        runs += [
            Run(method, dataset, s, seed, classes, tuple(others), protocol) for s, seed in samples
        ]
    return runs


def of_part(
    planned: Sequence[Run], number: int, parts: int, overrides: Overrides
) -> tuple[list[Run], list[Run]]:
    """Return the runs of one of several machines, and those of the others.

    number: from 1 to parts. The runs are dealt out from the dearest on, so that parts take about
    the same time. Within a part they keep their order, in which those of a dataset are together.
    """
    dearest = sorted(planned, key=lambda run: cost(run, overrides), reverse=True)
    own = set(dearest[number - 1 :: parts])
    return [run for run in planned if run in own], [run for run in planned if run not in own]


def cost(run: Run, overrides: Overrides) -> float:
    """Return what a run costs beside others, in training images per class, for each part."""
    if not run.learns:
        return 0.0
    shots = math.inf if run.shots < 0 else run.shots
    return shots * run_config(run, overrides).train.epochs * max(len(ROWS[run.method].parts), 1)


def run_config(run: Run, overrides: Overrides) -> ConfigDict:
    """Return the checked configuration of a run; the overrides win over the dataset's settings."""
    config = method_config(run.method, run.dataset, overrides, run.protocol)
    config.dataset.shots, config.dataset.classes, config.seed = run.shots, run.classes, run.seed
    settings.check(config)
    return config


def target_config(
    run: Run, target: Target, overrides: Overrides, workdir: epath.Path
) -> ConfigDict:
    """Return the configuration that tests the prompts of `workdir` on a target."""
    named = method_config(run.method, target.dataset, overrides, run.protocol)
    source = {"init_from": str(workdir), "dataset.classes": target.classes}
    own = {**overrides, **source}
    return settings.settings_for_evaluation(named, own, True, workdir)


def method_config(
    method: str, dataset: str, overrides: Overrides, protocol: str = FEW_SHOT
) -> ConfigDict:
    """Return a method's settings on a dataset, in a protocol."""
    config = settings.of_method(method, dataset, protocol)
    for key, value in overrides.items():
        settings.set_key(config, key, value)
    return config
