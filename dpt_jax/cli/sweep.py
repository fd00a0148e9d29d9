"""Run methods x datasets x shots x seeds as one job, which can be stopped and started again.

    dpt-jax sweep --datasets=eurosat,dtd --config.dataset.root=DATA [--shots=1,2,4,8,16]
        [--methods=zeroshot,coop,vpt,vlp,dpt] [--seeds=1,2,3] [--protocol=few-shot]
        [--runs=runs] [--part=I/N] [--config.KEY=VALUE …]
    dpt-jax sweep --preset=paper --config.dataset.root=DATA
    dpt-jax sweep … --plan

Protocols:
    few-shot               train and test on each of the datasets
    base-to-new            train on the base half of the classes, test on both halves
    cross-dataset          train on ImageNet, test the same prompts on the paper's other datasets
    domain-generalization  train on ImageNet, test the same prompts on its four shifted variants

--methods takes the names of configs/ and, for few-shot, probe, a linear probe. --datasets and
--targets name what to train on and to test on. --config.METHOD.KEY=VALUE sets a key for one method,
such as --config.maple.text_prompt.depth=3 for a CLIP of fewer layers. Finished runs are skipped,
and a stopped run is resumed. A run that fails does not end the others; it is reported at the end,
with exit code 1. With --part=I/N a process begins with every Nth run, and then takes runs of other
parts that are neither finished nor in training. --preset=paper is the table of DPT's paper; other
flags take precedence. --plan prints each run and its state. `dpt-jax report RUNS` makes the tables.
"""

import argparse
import collections
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dpt_jax import cli
from dpt_jax.errors import UserError

if TYPE_CHECKING:
    from dpt_jax.runs import Run

# Keys that a sweep sets itself, and the flag that says how.
SWEPT = {
    "method": "--methods",
    "dataset.name": "--datasets",
    "dataset.shots": "--shots",
    "dataset.classes": "--protocol",
    "seed": "--seeds",
    "init_from": "--protocol",
}


def names(text: str) -> list[str]:
    """Return the names of a flag, without spaces around them; there is at least one."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise ValueError
    return found


def numbers(text: str) -> list[int]:
    """Return the whole numbers of a flag."""
    return [int(name) for name in names(text)]


def part(text: str) -> tuple[int, int]:
    """Return I and N of --part=I/N."""
    number, parts = map(int, text.split("/"))
    if not 1 <= number <= parts:
        raise ValueError
    return number, parts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add, add_table = parser.add_argument, parser.add_mutually_exclusive_group().add_argument
    protocols = ("few-shot", "base-to-new", "cross-dataset", "domain-generalization")
    add_table("--preset", choices=("paper",), help="a whole table: paper")
    add_table("--protocol", choices=protocols, default=protocols[0], help="default few-shot")
    add("--methods", type=names, help="default the five of DPT's paper, SS-Text and ZS-LP")
    add("--datasets", type=names, help="what to train on; default the protocol's")
    add("--targets", type=names, help="what else to test the prompts on")
    add("--shots", type=numbers, default="1,2,4,8,16", help="-1 for all images; default 1,2,4,8,16")
    add("--seeds", type=numbers, default="1,2,3", help="default 1,2,3")
    add("--runs", default="runs", help="the folder of the runs; default runs")
    add("--part", type=part, metavar="I/N", default="1/1", help="begin with part I of N")
    add("--plan", action="store_true", help="print the runs, run nothing")
    cli.add_config(parser, of_methods=True)
    cli.add_hosts(parser)


def run(flags: argparse.Namespace) -> None:
    planned = _planned(flags)
    from dpt_jax.io import as_path
    from dpt_jax.logging import say
    from dpt_jax.runs import state, sweep

    runs = as_path(flags.runs)
    _check_one_can_run(planned, with_data=not flags.plan)
    if flags.plan:
        counts = collections.Counter[str]()
        for one in planned:
            found = state(one)
            print(f"{one}: {found}", flush=True)  # in a bucket, each takes a moment
            counts[found.partition(":")[0]] += 1
        counted = (f"{count} {found}" for found, count in counts.items())
        print(f"\n{len(planned)} runs in {runs}: {', '.join(counted)}.")
        return
    cli.connect_hosts(flags)
    failed, elsewhere = sweep(planned)
    finished = len(planned) - len(failed) - len(elsewhere)
    left = f", other processes train {len(elsewhere)}" if elsewhere else ""
    say(f"{finished} of {len(planned)} runs are finished{left}; tables: dpt-jax report {runs}")
    for failure, why in failed:
        say(f"failed: {failure}: {why}")
    if failed:
        sys.exit(1)


def _check_one_can_run(planned: "Sequence[Run]", with_data: bool) -> None:
    """Raise UserError if no run can start. If some can, the others fail when they are reached."""
    from dpt_jax.data.dataset import check_root

    reasons = []
    for one in planned:
        try:
            if one.refused:
                raise UserError(f"{one}: {one.refused}")
            if with_data:
                check_root(one.config.dataset)
            return
        except UserError as reason:
            reasons.append(reason)
    raise reasons[0]


def _planned(flags: argparse.Namespace) -> "list[Run]":
    """Return the runs that the flags name, in their order."""
    from dpt_jax.data.catalogue import PAPER_DATASETS
    from dpt_jax.io import as_path
    from dpt_jax.methods import COMPARED, OF_THE_PAPER, PROBE, ROWS
    from dpt_jax.runs import BASE_TO_NEW, FEW_SHOT, PROTOCOLS, in_order_of_part, plan

    overrides = flags.given.overrides
    if flags.given.file is not None:
        raise UserError("--config=FILE is for `dpt-jax train`: a sweep has --methods.")
    for key, flag in SWEPT.items():
        if any(given in (key, f"{method}.{key}") for given in overrides for method in ROWS):
            raise UserError(f"--config.{key}: the sweep varies it, use {flag}.")
    datasets, targets = PROTOCOLS[flags.protocol]
    methods = flags.methods or (OF_THE_PAPER if flags.preset else COMPARED)
    if unknown := [method for method in methods if method not in ROWS]:
        raise UserError(f"--methods: {unknown[0]!r} is not one of {', '.join(ROWS)}.")
    if PROBE.name in methods and flags.protocol != FEW_SHOT:
        raise UserError(
            f"--methods={PROBE.name}: a probe has only the classes that it was fitted to, so it "
            f"needs --protocol={FEW_SHOT}."
        )
    if flags.targets and flags.protocol == BASE_TO_NEW:
        raise UserError("--targets: base-to-new tests on the new classes, not on other datasets.")
    planned = plan(
        as_path(flags.runs),
        overrides,
        flags.protocol,
        methods,
        flags.datasets or (PAPER_DATASETS if flags.preset else datasets),
        flags.targets or targets,
        flags.shots,
        flags.seeds,
    )
    return in_order_of_part(planned, *flags.part)
