"""Arguments that several commands share."""

import argparse
from typing import TYPE_CHECKING, NamedTuple

from dpt_jax.errors import UserError

if TYPE_CHECKING:
    from etils import epath

    from dpt_jax.distributed import Hosts
    from dpt_jax.predictor.predictor import Predictor
    from dpt_jax.settings import ConfigArguments

RUN_HELP = "the workdir of a run, or a file of `dpt-jax convert export`"


class RunArguments(NamedTuple):
    """The parsed flags of a command that takes settings, and those settings."""

    flags: argparse.Namespace
    settings: "ConfigArguments"


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add --config and --config.KEY, which `parse_with_settings` reads."""
    group = parser.add_argument_group("settings")
    group.add_argument(
        "--config",
        metavar="FILE[:DATASET]",
        help="configs/METHOD.py, or a method's name; default dpt",
    )
    group.add_argument(
        "--config.KEY", metavar="VALUE", help="any key that `dpt-jax settings` lists"
    )


def add_hosts(parser: argparse.ArgumentParser) -> None:
    """Add --coordinator, --processes, --process and --cluster: one process per host."""
    group = parser.add_argument_group("several hosts (docs/devices.md)")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    group.add_argument("--processes", type=int, metavar="N", help="number of processes")
    group.add_argument("--process", type=int, metavar="I", help="number of this process, from 0")
    group.add_argument(
        "--cluster",
        action="store_true",
        help="take these three from the environment of a TPU pod slice (srun and mpirun need no "
        "flag)",
    )


def add_run(parser: argparse.ArgumentParser, *others: str) -> None:
    """Add the run that a command reads, as first argument or as --workdir, and --clip.

    others: what follows the run, for the usage line.
    """
    parser.usage = f"{parser.prog} W {' '.join([*others, '[options]'])}"
    parser.add_argument("names", nargs="*", metavar="W", help=RUN_HELP)
    parser.add_argument("--workdir", metavar="W", help="the run, instead of the first argument")
    parser.add_argument(
        "--clip", default="", metavar="WEIGHTS", help="CLIP's weights, if they have moved"
    )


def parse_with_settings(parser: argparse.ArgumentParser, arguments: list[str]) -> RunArguments:
    """Return the flags and the settings of a command line.  Raise UserError for a wrong one."""
    from dpt_jax.settings import read_config_arguments

    settings, rest = read_config_arguments(arguments)
    return RunArguments(parser.parse_intermixed_args(rest), settings)


def add_run_settings(parser: argparse.ArgumentParser) -> None:
    """Add what a command takes that makes a run of its settings, which `begin` reads."""
    add_settings(parser)
    add_hosts(parser)
    parser.add_argument("others", nargs="*", help=argparse.SUPPRESS)


def begin(parser: argparse.ArgumentParser, arguments: list[str]) -> RunArguments:
    """Return the flags and the settings of such a command line, with the hosts connected.

    Raise UserError for a wrong one.
    """
    flags, given = parse_with_settings(parser, arguments)
    if flags.others:
        raise UserError(
            f"unknown argument {flags.others[0]!r}: settings are given as --config.KEY=VALUE."
        )
    connect_hosts(flags)
    return RunArguments(flags, given)


def split_run(flags: argparse.Namespace) -> tuple["epath.Path", list[str]]:
    """Return the run that is named, and the other names.  Raise UserError where none is."""
    from dpt_jax.io import as_path

    names = list(flags.names)
    if not flags.workdir and not names:
        raise UserError(f"no run is named: give {RUN_HELP}.")
    return as_path(flags.workdir or names.pop(0)), names


def only_run(flags: argparse.Namespace) -> "epath.Path":
    """Return the run, of a command that takes nothing else.  Raise UserError for more."""
    run, others = split_run(flags)
    if others:
        raise UserError(f"unknown argument {others[0]!r}: the command takes one run.")
    return run


def connect_hosts(flags: argparse.Namespace) -> None:
    """Join the hosts that the flags name, and keep compiled programs for later runs."""
    from dpt_jax import distributed

    start_libraries()
    distributed.connect(hosts(flags))
    distributed.keep_compiled()


def hosts(flags: argparse.Namespace) -> "Hosts":
    """Return the hosts that the flags name."""
    from dpt_jax.distributed import Hosts

    return Hosts(flags.coordinator, flags.processes, flags.process, flags.cluster)


def start_libraries() -> None:
    """Prepare libraries that read absl's flags, and keep their notes off the console."""
    from absl import flags, logging

    flags.FLAGS.mark_as_parsed()  # Grain reads its own
    logging.set_verbosity(logging.WARNING)


def load_predictor(
    flags: argparse.Namespace,
    run: "epath.Path",
    batch_size: int,
    classnames: list[str] | None = None,
) -> "Predictor":
    """Return the predictor of a run.  batch_size: images that a device takes at a time."""
    from dpt_jax.predictor.predictor import load

    start_libraries()
    return load(run, classnames, flags.clip, batch_size)


def at_least_one(text: str) -> int:
    """Return a flag as a positive whole number.  Raise ValueError, which argparse reports."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number
