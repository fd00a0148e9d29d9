"""--config and --config.KEY, which absl's config_flags parses."""

import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from dpt_jax.config import KEYS, Value, flat, nearest
from dpt_jax.configs import common
from dpt_jax.data.catalogue import read_descriptions
from dpt_jax.errors import UserError
from dpt_jax.methods import METHODS

DEFAULT = "dpt"


class Given(NamedTuple):
    """The configuration of a command line.

    Attributes:
      file: Value of --config, None if missing.
      config: With the overrides; not validated.
      overrides: Value of each --config.KEY.
    """

    file: str | None
    config: ConfigDict
    overrides: dict[str, Value]

    @property
    def dataset_named(self) -> bool:
        """Whether --config names a dataset."""
        return self.file is not None and ":" in self.file


def from_command_line(
    arguments: Sequence[str], of_methods: bool = False
) -> tuple[Given, list[str]]:
    """Return the configuration of a command line, and the other arguments.

    Args:
      arguments: --config=FILE[:ARG], a path or a method's name, and --config.KEY=VALUE anywhere
        among others.
      of_methods: Whether --config.METHOD.KEY=VALUE is allowed too, an override METHOD.KEY.

    Raises:
      UserError: A key is unknown, a value has the wrong type, or the file is not a configuration.
    """
    file: str | None = None
    others: list[str] = []
    overrides: dict[str, Value] = {}
    left = iter(arguments)
    for argument in left:
        flag, given, value = argument.partition("=")
        is_key = flag.startswith(("--config.", "-config."))
        key = flag.lstrip("-").removeprefix("config.")
        method, _, own = key.partition(".")
        if argument == "--":
            others += [argument, *left]
        elif flag in ("--config", "-config"):
            file = value if given else next(left, "")
        elif of_methods and is_key and method in METHODS:
            if not given:
                raise UserError(f"{argument}: write --config.{method}.KEY=VALUE.")
            of_one, _ = from_command_line([f"--config={method}", f"--config.{own}={value}"])
            overrides |= {f"{method}.{name}": one for name, one in of_one.overrides.items()}
        else:
            others.append(argument)
            if is_key and key not in KEYS:
                raise UserError(f"{flag}: there is no such key{nearest(key)}")
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

    Raises:
      UserError: The file does not exist.
    """
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


def _check_keys(config: Any, file: str) -> None:
    """Raise UserError if a configuration file does not have exactly the keys of common.py."""
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config: get_config of {file} does not return a ConfigDict.")
    found = flat(config.to_dict())
    if unknown := [key for key in found if key not in KEYS]:
        raise UserError(f"{file}: {unknown[0]} is not a key{nearest(unknown[0])}")
    if missing := [key for key in KEYS if key not in found]:
        raise UserError(
            f"{file}: {missing[0]} is missing; begin with `config = common.get_config()` of "
            "dpt_jax.configs."
        )
