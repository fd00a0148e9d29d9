"""--config=FILE[:DATASET] and --config.KEY=VALUE on the command line."""

import importlib.util
import sys
from collections.abc import Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from dpt_jax.errors import UserError
from dpt_jax.io import as_path
from dpt_jax.methods import METHODS
from dpt_jax.settings.config import of_method
from dpt_jax.settings.keys import KEYS, Key, Value
from dpt_jax.settings.schema import defaults, flat, nearest, set_key

DEFAULT = "dpt"
TRUE, FALSE = ("true", "t", "1"), ("false", "f", "0")


class ConfigArguments(NamedTuple):
    """What the command line says of the settings.

    file: the value of --config, None where it is not given. config: the configuration with the
    overrides. overrides: each --config.KEY=VALUE. dataset_named: whether --config has a dataset.
    """

    file: str | None
    config: ConfigDict
    overrides: dict[str, Value]
    dataset_named: bool


def read_config_arguments(arguments: Sequence[str]) -> tuple[ConfigArguments, list[str]]:
    """Return what the arguments say of the settings, and the other arguments.

    Raise UserError for an unknown key, a value of another type, and a file without a configuration.
    """
    file, texts, rest = _sort(arguments)
    overrides = {key: _value(KEYS[key], text) for key, text in texts.items()}
    name = DEFAULT if file is None else file
    config = _load(name)
    for key, value in overrides.items():
        set_key(config, key, value)
    return ConfigArguments(file, config, overrides, ":" in name), rest


def _sort(arguments: Sequence[str]) -> tuple[str | None, dict[str, str], list[str]]:
    """Return --config, the text of each key, and the rest."""
    file: str | None = None
    texts: dict[str, str] = {}
    rest: list[str] = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        if argument == "--":
            return file, texts, [*rest, argument, *left]
        flag, given, text = argument.partition("=")
        name = flag.lstrip("-")
        if not flag.startswith("-") or name.partition(".")[0] not in ("config", "noconfig"):
            rest.append(argument)
            continue
        key = name.partition(".")[2]
        switch = key in KEYS and KEYS[key].kind is bool and not given
        if name.startswith("noconfig."):
            if not switch:
                raise UserError(f"{flag}: only a key that is true or false can be negated.")
            texts[key] = "false"
        elif switch:
            texts[key] = "true"
        else:
            if key and key not in KEYS:
                raise UserError(f"--config.{key}: there is no such key{nearest(key)}")
            if not given:
                if not left:
                    raise UserError(f"{flag} has no value: give it as {flag}=VALUE.")
                text = left.pop(0)
            if key:
                texts[key] = text
            else:
                file = text
    return file, texts, rest


def _value(key: Key, text: str) -> Value:
    """Return the value of a key.  Raise UserError where the text is of another type."""
    wrong = f"--config.{key.name}={text}: give"
    if key.default is None and text.lower() == "none":
        return None
    if key.kind is bool:
        if text.lower() not in (*TRUE, *FALSE):
            raise UserError(f"{wrong} true or false.")
        return text.lower() in TRUE
    try:
        return key.kind(text)
    except ValueError as reason:
        raise UserError(f"{wrong} a {'whole ' if key.kind is int else ''}number.") from reason


def _load(name: str) -> ConfigDict:
    """Return the configuration of FILE[:DATASET], or of METHOD[:DATASET] of this package."""
    file, _, dataset = name.partition(":")
    if file in METHODS:
        return of_method(file, *([dataset] if dataset else []))
    path = as_path(file)
    if not path.is_file():
        raise UserError(
            f"--config: there is no file {file}; those of the methods are in configs/, and "
            f"{', '.join(METHODS)} name the same settings."
        )
    found = _execute(str(path), dataset)
    config = defaults()
    for key, value in flat(found.to_dict()).items():
        try:
            set_key(config, key, value)
        except (KeyError, AttributeError, TypeError, ValueError) as reason:
            raise UserError(f"{file}: {key} = {value!r} is no setting{nearest(key)}") from reason
    return config


def _execute(file: str, dataset: str) -> ConfigDict:
    """Return what the get_config of a Python file makes."""
    spec = importlib.util.spec_from_file_location("config_file", file)
    if spec is None or spec.loader is None:
        raise UserError(f"--config: {file} is not a Python file; its name should end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"--config: {file} has no function get_config.")
    config = module.get_config(*([dataset] if dataset else []))
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config: get_config of {file} makes no ConfigDict.")
    return config
