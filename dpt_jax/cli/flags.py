"""Flags that several commands share. absl's config_flags parses --config and --config.KEY."""

import argparse
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dpt_jax.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from dpt_jax.config import Value

DEFAULT = "dpt"


class Given(NamedTuple):
    """The configuration of a command line."""

    file: str | None  # value of --config
    config: "ConfigDict"  # with the overrides; not validated
    overrides: "dict[str, Value]"

    @property
    def dataset_named(self) -> bool:
        """Whether --config names a dataset."""
        return self.file is not None and ":" in self.file


def add_config(parser: argparse.ArgumentParser, of_methods: bool = False) -> None:
    """Add --config and --config.KEY, which `parse` reads, and perhaps --config.METHOD.KEY."""
    parser.set_defaults(of_methods=of_methods)
    add = parser.add_argument_group("settings").add_argument
    add("--config", metavar="FILE[:DATASET[:PROTOCOL]]", help="a method or a file; default dpt")
    add("--config.KEY", metavar="VALUE", help="any key that `dpt-jax settings` lists")


def add_hosts(parser: argparse.ArgumentParser) -> None:
    """Add --coordinator, --processes, --process and --cluster: one process per host."""
    add = parser.add_argument_group("several hosts (docs/devices.md)").add_argument
    add("--coordinator", metavar="HOST:PORT", help="address of process 0")
    add("--processes", type=int, metavar="N", help="number of processes")
    add("--process", type=int, metavar="I", help="number of this process, from 0")
    add("--cluster", action="store_true", help="take these three from a TPU pod slice")


def add_run(parser: argparse.ArgumentParser, images: bool = False) -> None:
    """Add the run that a command reads, --clip, and perhaps images."""
    add = parser.add_argument
    add("workdir", metavar="W", help="a workdir, or a prompt file of `dpt-jax convert export`")
    if images:
        add("images", nargs="+", metavar="PATH", help="images, or their folders")
    add_clip(parser)
    refuse_workdir(parser)


def refuse_workdir(parser: argparse.ArgumentParser) -> None:
    """Say where the run goes if it is given by --workdir, as for `train`."""

    def refuse(text: str) -> None:
        raise argparse.ArgumentTypeError(f"{text} is a run: give it first, without --workdir")

    parser.add_argument("--workdir", dest="_", type=refuse, help=argparse.SUPPRESS)


def add_clip(parser: argparse.ArgumentParser) -> None:
    what = "CLIP's weights, if they have moved"
    parser.add_argument("--clip", default="", metavar="WEIGHTS", help=what)


def add_top(parser: argparse.ArgumentParser, default: int, what: str) -> None:
    what = f"{what} ({default})"
    parser.add_argument("--top", type=at_least_one, default=default, metavar="N", help=what)


def at_least_one(text: str) -> int:
    """Return a flag as a positive integer."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Return the flags of a command line; `given` is the configuration if the command has one."""
    given = None
    if (of_methods := parser.get_default("of_methods")) is not None:
        given, arguments = from_command_line(arguments, of_methods)
    flags = parser.parse_intermixed_args(arguments)
    flags.given = given
    return flags


def connect_hosts(flags: argparse.Namespace) -> None:
    """Connect the hosts that the flags name, and keep compiled programs for later runs."""
    from dpt_jax import distributed

    distributed.connect(flags.coordinator, flags.processes, flags.process, flags.cluster)
    distributed.keep_compiled()


def from_command_line(
    arguments: Sequence[str], of_methods: bool = False
) -> tuple[Given, list[str]]:
    """Return the configuration of a command line, and the other arguments.

    of_methods: whether --config.METHOD.KEY=VALUE is allowed too, which becomes an override
    METHOD.KEY.
    """
    from absl import flags
    from ml_collections import config_flags

    from dpt_jax.config import KEYS, nearest
    from dpt_jax.data.catalogue import read_descriptions
    from dpt_jax.methods import METHODS

    file: str | None = None
    others: list[str] = []
    overrides: dict[str, Value] = {}
    left = iter(arguments)
    for argument in left:
        if argument.startswith("-config"):  # which absl takes too
            argument = f"-{argument}"
        flag, given, value = argument.partition("=")
        key = flag.lstrip("-").removeprefix("config.")
        method, _, own = key.partition(".")
        if argument == "--":
            others += [argument, *left]
        elif flag == "--config":
            file = value if given else next(left, "")
        elif not flag.startswith("--config."):
            others.append(argument)
        elif of_methods and method in METHODS:
            of_one, _ = from_command_line([f"--config={method}", f"--config.{own}={value}"])
            overrides |= {f"{method}.{name}": one for name, one in of_one.overrides.items()}
        elif key not in KEYS:
            raise UserError(f"{flag}: there is no such key{nearest(key)}")
        else:
            others.append(argument)
    name = _with_dataset(DEFAULT if file is None else file, others)
    # The flag of the file goes first, since it defines the flags of its keys.
    argv = ["", f"--config={name}", *others]
    values = flags.FlagValues()
    values.set_gnu_getopt(True)
    sys.modules.pop("config_config", None)  # config_flags' name for the file, whatever its path
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        rest = values(argv, known_only=True)[1:]
    except (flags.Error, AttributeError, LookupError, TypeError, ValueError) as reason:
        *_, cause = (line.strip() for line in str(reason).splitlines() if line.strip())
        cause = cause.removeprefix("flag ").rstrip(".")
        where = "" if cause.startswith("--config.") else f"--config={name}: "
        raise UserError(f"{where}{cause}.") from reason
    config: Any = values["config"].value
    _check_keys(config, name)
    overrides |= config_flags.get_override_values(values["config"])
    if config.dataset.descriptions:
        config.dataset.descriptions = read_descriptions(config.dataset.descriptions)
        if (key := "dataset.descriptions") in overrides:
            overrides[key] = config.dataset.descriptions
    return Given(file, config, overrides), rest


def _with_dataset(name: str, arguments: Sequence[str]) -> str:
    """Return PATH[:DATASET[:PROTOCOL]] of a configuration, named by its path or by its method.

    A method's own file without a dataset gets the one of dataset.name, or "folder", the user's own
    images, if `arguments` only have a dataset.root.
    """
    from dpt_jax.configs import common
    from dpt_jax.methods import METHODS

    file, colon, arg = name.partition(":")
    published = pathlib.Path(common.__file__).resolve().parent
    path = published / f"{file}.py" if file in METHODS else pathlib.Path(file).expanduser()
    if not path.is_file():
        raise UserError(
            f"--config: {file or 'its value'} is not a file: give a path, or the name of a method "
            f"({', '.join(METHODS)})."
        )
    keys = "\n".join(arguments)
    given = dict(re.findall(r"^--?config\.dataset\.(name|root)[=\n](.+)$", keys, re.M))
    if given and not colon and path.resolve().parent == published:
        colon, arg = ":", given.get("name", "folder")
    return f"{path}{colon}{arg}"


def _check_keys(config: object, file: str) -> None:
    """Raise UserError if a configuration file does not have exactly the keys of common.py."""
    from ml_collections import ConfigDict

    from dpt_jax.config import KEYS, flat, nearest

    found = flat(config.to_dict()) if isinstance(config, ConfigDict) else {}
    for key in [key for key in (*found, *KEYS) if (key in KEYS) != (key in found)]:
        what = "is missing." if key in KEYS else f"is not a key{nearest(key)}"
        raise UserError(
            f"{file}: {key} {what} Its get_config begins with `config = common.get_config()` of "
            "dpt_jax.configs, and returns it."
        )
