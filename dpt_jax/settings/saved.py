"""config.json: the settings that a run was started with."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from dpt_jax.distributed import is_first
from dpt_jax.errors import UserError
from dpt_jax.io import write_whole
from dpt_jax.settings.keys import KEYS, SCHEMA, Resume
from dpt_jax.settings.schema import check, defaults, flat, nearest, set_key
from dpt_jax.training import prompt_file

CONFIG_FILE = "config.json"


def save(config: ConfigDict, workdir: epath.Path) -> None:
    """Write config.json, on host 0.  Raise UserError where the workdir cannot be made."""
    if not is_first():
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_whole(workdir / CONFIG_FILE, json.dumps(config.to_dict(), indent=2) + "\n")
    except OSError as reason:
        raise UserError(f"--workdir: {workdir} cannot be written to ({reason}).") from reason


def load(source: epath.Path, default: ConfigDict) -> ConfigDict:
    """Return the settings saved in a workdir or prompt file.

    A key that is not there is younger than the run. It has the schema's default, by which the run
    was made, but where any value serves the run: then it has that of `default`. Raise UserError
    where there are no settings, or one is unknown or of another type.
    """
    if prompt_file.is_prompt_file(source):
        file, saved = source, prompt_file.read_header(source)["settings"]
    else:
        file = source / CONFIG_FILE
        saved = _read_json(file)
    if not isinstance(saved, Mapping):
        raise UserError(f"{file} does not hold settings, but {saved!r:.80}.")
    config = default.copy_and_resolve_references()
    younger = {key.name: key.default for key in SCHEMA if key.resume is not Resume.FREE}
    for key, value in (younger | flat(saved)).items():
        try:
            set_key(config, key, value)
        except TypeError as reason:
            raise UserError(f"{file}: {key} cannot be {value!r} ({reason}).") from reason
        except (KeyError, AttributeError, ValueError) as reason:
            raise UserError(
                f"{file}: key {key} is not one of this version's configuration{nearest(key)}"
            ) from reason
    return config


def load_saved(source: epath.Path) -> ConfigDict:
    """Return the checked settings of a workdir or prompt file.  Raise UserError, see `load`."""
    config = load(source, defaults())
    try:
        check(config)
    except UserError as reason:
        raise UserError(f"{source}: {reason}") from reason
    return config


def keys_that_may_change(*, asked: bool = False) -> frozenset[str]:
    """Return the keys that a started run may change; asked: those of --allow_changes too."""
    free = (Resume.FREE, Resume.ASKED) if asked else (Resume.FREE,)
    return frozenset(key.name for key in SCHEMA if key.resume in free)


def check_same_run(config: ConfigDict, workdir: epath.Path, may_change: Iterable[str]) -> str:
    """Return, in words, which settings differ from those of the run in `workdir`, or "".

    Raise UserError where one differs that may not.
    """
    if not (workdir / CONFIG_FILE).exists():
        return ""
    old, new = flat(load(workdir, config).to_dict()), flat(config.to_dict())
    changed = [key for key in new if old.get(key) != new[key]]
    refused = [key for key in changed if key not in frozenset(may_change)]

    def in_words(keys: Sequence[str]) -> str:
        return ", ".join(f"{key} ({old.get(key)!r} there, {new[key]!r} now)" for key in keys)

    if refused:
        bound = any(KEYS[key].resume is Resume.BOUND for key in refused)
        way_out = "another --workdir" + (
            "" if bound else ", or say with --allow_changes that you mean it"
        )
        raise UserError(
            f"{workdir} holds a run with other settings: {in_words(refused)}; use them, or "
            f"{way_out}."
        )
    return in_words(changed)


def _read_json(file: epath.Path) -> Any:
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError) as reason:
        raise UserError(
            f"{file.parent} is no workdir of a run: it has no {CONFIG_FILE}."
        ) from reason
    except (ValueError, RecursionError) as reason:
        raise UserError(f"{file} is not valid JSON ({reason}).") from reason
    except OSError as reason:
        raise UserError(f"{file} cannot be read ({reason}).") from reason
