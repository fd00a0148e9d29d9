"""Run methods x datasets x shots x seeds as one job, which can be stopped and started again.

    dpt-jax sweep --datasets=eurosat,dtd --config.dataset.root=DATA [--shots=1,2,4,8,16]
        [--methods=zeroshot,coop,vpt,vlp,dpt] [--seeds=1,2,3] [--protocol=few-shot]
        [--runs=runs] [--part=I/N] [--devices-per-run=N] [--config.KEY=VALUE …]
    dpt-jax sweep --preset=paper --config.dataset.root=DATA
    dpt-jax sweep … --plan

Protocols:
    few-shot               train and test on each of the datasets
    base-to-new            train on the base half of the classes, test on both halves
    cross-dataset          train on ImageNet, test the same prompts on the paper's other datasets
    domain-generalization  train on ImageNet, test the same prompts on its four shifted variants

--methods are the names of configs/, of which the five above are the default: besides them there are
cocoop, ivlp, kgcoop, maple, promptsrc, and dptsrc, which is DPT with PromptSRC's losses. probe is a
linear probe, which is run by the first protocol alone. --datasets and --targets replace what the
last two train and test on. Runs that have their results are skipped, a run that was stopped goes
on, and one that fails is reported at the end, with exit code 1, while the others go on. With
--part=I/N a process begins with its part of the runs, and goes on with those of the others that
nobody has finished or is training. With --devices-per-run=N as many runs go on at once as the
machine has N devices for, each in a process that sees its own; a process that dies is reported, and
the others go on. --preset=paper is the table of DPT's paper: its five methods on its eleven
datasets, at 1, 2, 4, 8 and 16 shots from three seeds; what a flag says besides wins over it, as in
--preset=paper --datasets=dtd,eurosat. --plan runs nothing: it prints each run, how far it is, and
what it will cost. `dpt-jax report RUNS` makes the tables and the figure.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dpt_jax.cli import arguments as shared
from dpt_jax.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from dpt_jax.distributed import Hosts
    from dpt_jax.runtime.slots import Variables
    from dpt_jax.training import grid


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is run; --config.KEY=VALUE holds for all runs."""
    parser.add_argument("--preset", help="a whole table: paper")
    parser.add_argument("--methods", help="default the five of DPT's paper, see above")
    parser.add_argument("--datasets", help="what to train on; default the protocol's")
    parser.add_argument("--targets", help="what else to test the prompts on")
    parser.add_argument("--shots", help="images per class, -1 for all; default 1,2,4,8,16")
    parser.add_argument("--seeds", help="default 1,2,3")
    parser.add_argument(
        "--protocol",
        choices=("few-shot", "base-to-new", "cross-dataset", "domain-generalization"),
        help="what is trained and tested on what; default few-shot",
    )
    parser.add_argument("--runs", default="runs", help="the folder of the runs; default runs")
    parser.add_argument(
        "--part", metavar="I/N", default="1/1", help="begin with the Ith of N parts"
    )
    parser.add_argument(
        "--devices-per-run",
        type=shared.at_least_one,
        metavar="N",
        help="train as many runs at once as this machine has N devices for",
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--plan", action="store_true", help="print what it would cost, run nothing")
    parser.add_argument("--workdir", help=argparse.SUPPRESS)
    parser.add_argument("others", nargs="*", help=argparse.SUPPRESS)
    shared.add_settings(parser)
    shared.add_hosts(parser)


def run(parser: argparse.ArgumentParser, arguments: list[str]) -> None:
    """Run what is planned, and report what failed."""
    flags, given = shared.parse_with_settings(parser, arguments)
    if flags.others:
        raise UserError(f"unknown argument {flags.others[0]!r}: see `dpt-jax sweep --help`.")
    if given.file is not None or flags.workdir:
        raise UserError(
            "the sweep makes its runs from --methods and --datasets, in --runs: --workdir and "
            "--config=FILE are for main.py."
        )
    from dpt_jax.io import as_path
    from dpt_jax.logging import say
    from dpt_jax.training import grid
    from dpt_jax.training.beside import serve, sweep_beside
    from dpt_jax.training.forecast import plan_in_words
    from dpt_jax.training.sweep import Runner, sweep
    from dpt_jax.training.time_left import TimeLeft

    planned = _plan(flags, given.overrides)
    # An unknown dataset or a value no run can have ends the sweep before it begins.
    configs = [grid.run_config(one, given.overrides) for one in planned]
    for one in planned:
        for target in one.targets:
            grid.method_config(one.method, target.dataset, given.overrides, one.protocol)
    number, parts = _part(flags.part)
    first, others = grid.of_part(planned, number, parts, given.overrides)
    planned = first + others
    runs = as_path(flags.runs)
    if flags.plan:
        shared.start_libraries()
        for line in plan_in_words(planned, runs, given.overrides):
            print(line)
        return
    _check_roots(configs)
    if flags.worker:
        shared.connect_hosts(flags)
        serve(planned, Runner(runs, given.overrides))
        return
    if flags.devices_per_run:
        slots = _slots(flags.devices_per_run, shared.hosts(flags))
        worker = [sys.executable, "-m", "dpt_jax", "sweep", *arguments, "--worker"]
        time_left = TimeLeft(given.overrides, {})
        failed, elsewhere = sweep_beside(first, others, worker, slots, time_left)
    else:
        shared.connect_hosts(flags)
        runner = Runner(runs, given.overrides)
        time_left = TimeLeft(given.overrides, runner.backbones)
        failed, elsewhere = sweep(planned, time_left.timed(runner), time_left.words)
    finished = len(planned) - len(failed) - len(elsewhere)
    left = f", other processes train {len(elsewhere)}" if elsewhere else ""
    say(f"{finished} of {len(planned)} runs are finished{left}; tables: dpt-jax report {runs}")
    for failure, why in failed:
        say(f"failed: {failure}: {why}")
    if failed:
        sys.exit(1)


def _plan(flags: argparse.Namespace, overrides: "grid.Overrides") -> list["grid.Run"]:
    """Return the runs that the flags ask for.  Raise UserError where they contradict each other."""
    from dpt_jax.methods import PROBE, ROWS
    from dpt_jax.training import grid
    from dpt_jax.training.presets import PAPER, preset_of

    for key, flag in grid.SWEPT.items():
        if key in overrides:
            raise UserError(f"--config.{key}: the sweep varies it, use {flag}.")
    preset = None if flags.preset is None else preset_of(flags.preset, flags.protocol)
    table = preset or PAPER
    protocol = flags.protocol or table.protocol
    methods = list(table.methods) if flags.methods is None else _names(flags.methods)
    unknown = [method for method in methods if method not in ROWS]
    if unknown:
        raise UserError(f"--methods: {unknown[0]!r} is not one of {', '.join(ROWS)}.")
    if PROBE.name in methods and protocol != grid.FEW_SHOT:
        raise UserError(
            f"--methods={PROBE.name}: a probe knows the classes that it was fitted to, and goes "
            f"with --protocol={grid.FEW_SHOT} alone."
        )
    datasets, targets = grid.PROTOCOLS[protocol]
    if preset:
        datasets = preset.datasets
    if flags.targets and protocol == grid.BASE_TO_NEW:
        raise UserError(
            "--targets: base-to-new tests on the other half of the classes, and on no other "
            "dataset."
        )
    planned = grid.plan(
        protocol,
        methods,
        datasets if flags.datasets is None else _names(flags.datasets),
        targets if flags.targets is None else _names(flags.targets),
        table.shots if flags.shots is None else _numbers("--shots", flags.shots),
        table.seeds if flags.seeds is None else _numbers("--seeds", flags.seeds),
    )
    if not planned:
        raise UserError(
            "there is nothing to run: --methods, --datasets, --shots and --seeds need a value each."
        )
    return planned


def _check_roots(configs: Sequence["ConfigDict"]) -> None:
    """Raise UserError where no run at all has a folder of data; of some, each run says so."""
    from dpt_jax.data.dataset import check_root

    missing = []
    for config in configs:
        try:
            check_root(config.dataset)
        except UserError as reason:
            missing.append(reason)
    if len(missing) == len(configs):
        raise missing[0]


def _slots(devices: int, hosts: "Hosts") -> list["Variables"]:
    """Return the variables of the processes of so many devices each that run beside each other.

    Raise UserError where the devices are those of several hosts, or cannot be dealt out.
    """
    from dpt_jax.runtime import slots

    if hosts.are_several:
        raise UserError(
            "--devices-per-run deals out the devices of one machine: start a sweep on each, with "
            "--part=I/N, and without flags for several hosts."
        )
    return slots.slots(slots.look(), devices)


def _part(text: str) -> tuple[int, int]:
    """Return I and N of --part=I/N.  Raise UserError for what is none."""
    first, _, last = text.partition("/")
    try:
        number, parts = int(first), int(last)
    except ValueError:
        number = parts = 0
    if not 1 <= number <= parts:
        raise UserError(f"--part={text}: give I/N, I from 1 to N, such as 1/4.")
    return number, parts


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(flag: str, text: str) -> list[int]:
    try:
        return [int(number) for number in _names(text)]
    except ValueError as reason:
        raise UserError(f"{flag}={text}: give whole numbers, such as 1,2,4.") from reason
