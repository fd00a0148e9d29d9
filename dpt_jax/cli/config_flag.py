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
from dpt_jax.data import descriptions
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


def from_command_line(arguments: Sequence[str]) -> tuple[Given, list[str]]:
    """Return the configuration of a command line, and the other arguments.

    Args:
      arguments: --config=FILE[:ARG], a path or a method's name, and --config.KEY=VALUE anywhere
        among others.

    Raises:
      UserError: A key is unknown, a value has the wrong type, or the file is not a configuration.
    """
    file: str | None = None
    others: list[str] = []
    left = iter(arguments)
    for argument in left:
        flag, given, value = argument.partition("=")
        if argument == "--":
            others += [argument, *left]
        elif flag in ("--config", "-config"):
            file = value if given else next(left, "")
        else:
            others.append(argument)
            key = flag.lstrip("-").removeprefix("config.")
            if flag.startswith(("--config.", "-config.")) and key not in KEYS:
                raise UserError(f"{flag}: there is no such key{nearest(key)}")
    name = DEFAULT if file is None else file
    if ":" not in name and _is_of_a_method(name) and (dataset := _dataset_of(others)):
        name = f"{name}:{dataset}"
    # The flag of the file goes first, since it defines the flags of its keys.
    argv = ["", f"--config={_path(name)}", *others]
    values = flags.FlagValues()
    values.set_gnu_getopt(True)
    sys.modules.pop("config_config", None)  # config_flags' name for the file, whatever its path
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        rest = values(argv, known_only=True)[1:]
    except (flags.Error, AttributeError, LookupError, TypeError, ValueError) as reason:
        raise UserError(_explain(reason, name)) from reason
    config: Any = values["config"].value
    _check_keys(config, name)
    overrides = config_flags.get_override_values(values["config"])
    if config.dataset.descriptions:
        config.dataset.descriptions = descriptions.read(config.dataset.descriptions)
        if (key := "dataset.descriptions") in overrides:
            overrides[key] = config.dataset.descriptions
    return Given(file, config, overrides), rest


def _is_of_a_method(file: str) -> bool:
    own = pathlib.Path(common.__file__).resolve().parent
    return pathlib.Path(_path(file)).resolve().parent == own


def _dataset_of(arguments: Sequence[str]) -> str:
    """Return the dataset that keys name; "folder", the user's own images, for only a root."""
    given = re.findall(r"^--?config\.dataset\.(name|root)[=\n](.+)$", "\n".join(arguments), re.M)
    return dict(given).get("name", "folder" if given else "")


def _path(name: str) -> str:
    """Return PATH[:ARG] of a configuration that is named by its path or by its method.

    Raises:
      UserError: The file does not exist.
    """
    file, colon, arg = name.partition(":")
    if file in METHODS:
        path = pathlib.Path(common.__file__).with_name(f"{file}.py")
    else:
        path = pathlib.Path(file).expanduser()
    if not path.is_file():
        raise UserError(
            f"--config: {file or 'its value'} is not a file: give a path, or the name of a method "
            f"({', '.join(METHODS)})."
        )
    return f"{path}{colon}{arg}"


def _explain(reason: Exception, file: str) -> str:
    """Return an error of config_flags as a sentence; its last line has the cause."""
    lines = [line for line in str(reason).splitlines() if line.strip()]
    cause = lines[-1].strip().removeprefix("flag ").rstrip(".")
    return f"{cause}." if cause.startswith("--config.") else f"--config={file}: {cause}."


def _check_keys(config: Any, file: str) -> None:
    """Raise UserError if a configuration file does not have exactly the keys of common.py."""
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config: get_config of {file} does not return a ConfigDict.")
    found = flat(config.to_dict())
    for key in found:
        if key not in KEYS:
            raise UserError(f"{file}: {key} is not a key{nearest(key)}")
    for key in KEYS:
        if key not in found:
            raise UserError(
                f"{file}: {key} is missing; begin with `config = common.get_config()` of "
                "dpt_jax.configs."
            )
