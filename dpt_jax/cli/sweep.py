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

--methods takes the names of configs/ and probe, a linear probe, which is only for few-shot. The
default is the five methods of DPT's paper, SS-Text and ZS-LP. --datasets and --targets name others
to train on and to test on. --config.METHOD.KEY=VALUE sets a key for one method, such
as --config.maple.text_prompt.depth=3 for a CLIP of fewer layers. Finished runs are skipped, and a
stopped run is resumed. A run that fails does not end the others; it is reported at the end, with
exit code 1. With --part=I/N a process begins with every Nth run, and then takes runs of other parts
that are neither finished nor in training. --preset=paper is the table of DPT's paper: its
five methods on its eleven datasets, at 1, 2, 4, 8 and 16 shots from three seeds; other flags take
precedence, as in --preset=paper --datasets=dtd,eurosat. --plan runs nothing: it prints each run and
its state. `dpt-jax report RUNS` makes the tables and the figure.
"""

import argparse
import collections
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dpt_jax.cli import flags as shared
from dpt_jax.errors import UserError

if TYPE_CHECKING:
    from dpt_jax.runs.sweep import Overrides, Run


def names(text: str) -> list[str]:
    """Return the names of a flag, without spaces around them."""
    return [name.strip() for name in text.split(",") if name.strip()]


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
    """Add the flags of the runs; --config.KEY=VALUE applies to all of them."""
    parser.add_argument("--preset", choices=("paper",), help="a whole table: paper")
    parser.add_argument(
        "--methods", type=names, help="default the five of DPT's paper, SS-Text and ZS-LP"
    )
    parser.add_argument("--datasets", type=names, help="what to train on; default the protocol's")
    parser.add_argument("--targets", type=names, help="what else to test the prompts on")
    parser.add_argument(
        "--shots",
        type=numbers,
        default="1,2,4,8,16",
        help="images per class, -1 for all; default 1,2,4,8,16",
    )
    parser.add_argument("--seeds", type=numbers, default="1,2,3", help="default 1,2,3")
    parser.add_argument(
        "--protocol",
        choices=("few-shot", "base-to-new", "cross-dataset", "domain-generalization"),
        default="few-shot",
        help="what to train and test on; default few-shot",
    )
    parser.add_argument("--runs", default="runs", help="the folder of the runs; default runs")
    parser.add_argument(
        "--part", type=part, metavar="I/N", default="1/1", help="begin with part I of N"
    )
    parser.add_argument("--plan", action="store_true", help="print the runs, run nothing")
    parser.add_argument("--workdir", help=argparse.SUPPRESS)
    shared.add_config(parser, of_methods=True)
    shared.add_hosts(parser)


def run(flags: argparse.Namespace) -> None:
    """Run what is planned, and report what failed."""
    overrides = flags.given.overrides
    if flags.given.file is not None or flags.workdir:
        raise UserError(
            "--workdir and --config=FILE are for `dpt-jax train`: a sweep has --runs, --methods "
            "and --datasets."
        )
    from dpt_jax.io import as_path
    from dpt_jax.logging import say
    from dpt_jax.runs import sweep

    planned = sweep.in_order_of_part(_planned(flags, overrides), *flags.part)
    runs = as_path(flags.runs)
    _check_one_can_run(planned, overrides, with_data=not flags.plan)
    if flags.plan:
        states = collections.Counter[str]()
        for one in planned:
            state = sweep.state(one, runs, overrides)
            print(f"{one}: {state}")
            states[state.partition(":")[0]] += 1
        counted = (f"{count} {state}" for state, count in states.items())
        print(f"\n{len(planned)} runs in {runs}: {', '.join(counted)}.")
        return
    shared.connect_hosts(flags)
    failed, elsewhere = sweep.sweep(planned, sweep.Runner(runs, overrides))
    finished = len(planned) - len(failed) - len(elsewhere)
    left = f", other processes train {len(elsewhere)}" if elsewhere else ""
    say(f"{finished} of {len(planned)} runs are finished{left}; tables: dpt-jax report {runs}")
    for failure, why in failed:
        say(f"failed: {failure}: {why}")
    if failed:
        sys.exit(1)


def _check_one_can_run(planned: Sequence["Run"], overrides: "Overrides", with_data: bool) -> None:
    """Raise UserError if no run can start. Otherwise, impossible runs fail in their turn.

    with_data: whether a run needs its folder of data.
    """
    from dpt_jax.data.dataset import check_root
    from dpt_jax.runs import sweep

    wrong = []
    for one in planned:
        try:
            config = sweep.run_config(one, overrides)
            if with_data:
                check_root(config.dataset)
            return
        except UserError as reason:
            wrong.append(f"{one}: {reason}")
    raise UserError(wrong[0])


def _planned(flags: argparse.Namespace, overrides: "Overrides") -> list["Run"]:
    """Return the runs that the flags name.  Raise UserError if they contradict each other."""
    from dpt_jax.data.catalogue import PAPER_DATASETS
    from dpt_jax.methods import COMPARED, OF_THE_PAPER, PROBE, ROWS
    from dpt_jax.runs import sweep

    for key, flag in sweep.SWEPT.items():
        if any(given in (key, f"{method}.{key}") for given in overrides for method in ROWS):
            raise UserError(f"--config.{key}: the sweep varies it, use {flag}.")
    if flags.preset and flags.protocol != sweep.FEW_SHOT:
        raise UserError(f"--preset={flags.preset} is for --protocol={sweep.FEW_SHOT}: drop one.")
    default = OF_THE_PAPER if flags.preset else COMPARED
    methods = list(default) if flags.methods is None else flags.methods
    unknown = [method for method in methods if method not in ROWS]
    if unknown:
        raise UserError(f"--methods: {unknown[0]!r} is not one of {', '.join(ROWS)}.")
    if PROBE.name in methods and flags.protocol != sweep.FEW_SHOT:
        raise UserError(
            f"--methods={PROBE.name}: a probe has only the classes that it was fitted to, so it "
            f"needs --protocol={sweep.FEW_SHOT}."
        )
    if flags.targets and flags.protocol == sweep.BASE_TO_NEW:
        raise UserError("--targets: base-to-new tests on the new classes, not on other datasets.")
    datasets, targets = sweep.PROTOCOLS[flags.protocol]
    if flags.preset:
        datasets = PAPER_DATASETS
    planned = sweep.plan(
        flags.protocol,
        methods,
        datasets if flags.datasets is None else flags.datasets,
        targets if flags.targets is None else flags.targets,
        flags.shots,
        flags.seeds,
    )
    if not planned:
        raise UserError(
            "there is nothing to run: --methods, --datasets, --shots and --seeds need a value each."
        )
    return planned
