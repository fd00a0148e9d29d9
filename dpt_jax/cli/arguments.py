"""Flags that several commands share."""

import argparse
from typing import TYPE_CHECKING

from dpt_jax.errors import UserError

if TYPE_CHECKING:
    from etils import epath

RUN_HELP = "the workdir of a run, or a prompt file from `dpt-jax convert export`"


def add_config(parser: argparse.ArgumentParser, of_methods: bool = False) -> None:
    """Add --config and --config.KEY, which `parse` reads, and perhaps --config.METHOD.KEY."""
    parser.set_defaults(of_methods=of_methods)
    group = parser.add_argument_group("settings")
    group.add_argument(
        "--config",
        metavar="FILE[:DATASET[:PROTOCOL]]",
        help="a method's name, or a file like configs/dpt.py; default dpt",
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


def parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """Return the flags of a command line; `given` is the configuration if the command has one.

    Raises:
      UserError: A flag, a key or a value is wrong.
    """
    given = None
    if (of_methods := parser.get_default("of_methods")) is not None:
        from dpt_jax.cli.config_flag import from_command_line

        given, arguments = from_command_line(arguments, of_methods)
    flags = parser.parse_intermixed_args(arguments)
    flags.given = given
    return flags


def connect_hosts(flags: argparse.Namespace) -> None:
    """Connect the hosts that the flags name, and keep compiled programs for later runs."""
    from dpt_jax import distributed

    distributed.connect(flags.coordinator, flags.processes, flags.process, flags.cluster)
    distributed.keep_compiled()


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


def split_run(flags: argparse.Namespace) -> tuple["epath.Path", list[str]]:
    """Return the run, and the other names.  Raise UserError if no run is named."""
    from dpt_jax.io import as_path

    names = list(flags.names)
    if not flags.workdir and not names:
        raise UserError(f"no run is named: give {RUN_HELP}.")
    return as_path(flags.workdir or names.pop(0)), names


def split_images(flags: argparse.Namespace) -> tuple["epath.Path", list[str]]:
    """Return the run, and the images that are named.  Raise UserError if one is missing."""
    workdir, names = split_run(flags)
    if not names:
        raise UserError("no image is named: give images or folders after the run.")
    from dpt_jax.data.folder import find_images

    return workdir, find_images(names)


def at_least_one(text: str) -> int:
    """Return a flag as a positive integer."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
