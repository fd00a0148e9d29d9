"""The workdir of a run: its path, and config.json, the settings with which it is resumed."""

import contextlib
import itertools
import json
from collections.abc import Collection, Mapping

from etils import epath
from ml_collections import ConfigDict

from dpt_jax.config import (
    BOUND,
    KEYS,
    SECTION_OF,
    UNBOUND,
    Value,
    flat,
    nearest,
    sections_without_use,
    set_value,
    validate,
)
from dpt_jax.configs import common
from dpt_jax.distributed import is_first
from dpt_jax.errors import UserError
from dpt_jax.io import as_path, make_folder, reading, size_of, write_whole
from dpt_jax.methods import METHODS
from dpt_jax.training.checkpoints import (
    FOLDER,
    SUFFIX,
    folder_of,
    is_prompt_file,
    newest,
    read_header,
)

CONFIG_FILE = "config.json"
TRAIN_FILES = "train_files.txt"  # the images that a run trains on
SPLIT_FILE = "split.csv"  # of a run on images whose folders do not say the split
# A run that starts from another run's prompts takes over the sizes of shared parts, except these
# keys, which add parameters of their own.
OWN = ("coupled", "conditioned")


def training_config(
    config: ConfigDict, overrides: Mapping[str, Value], workdir: epath.Path
) -> ConfigDict:
    """Return the validated configuration of a training in `workdir`.

    A run that starts from another run's prompts takes their CLIP and sizes from there, unless
    `overrides`, the values of the command line, say otherwise.
    """
    if config.init_from:
        # A run that has started has these in its own file; the other run may be gone by now.
        started = has_config(workdir)
        source = load_config(workdir if started else as_path(config.init_from))
        config = config.copy_and_resolve_references()
        config.clip = source.clip.copy_and_resolve_references()
        for part, section in SECTION_OF.items():
            if all(part in METHODS[one.method].parts for one in (config, source)):
                own = {key: config[section][key] for key in OWN if key in config[section]}
                config[section] = source[section].copy_and_resolve_references()
                config[section].update(own)
    return _overridden(config, overrides)


def evaluation_config(
    config: ConfigDict, overrides: Mapping[str, Value], dataset_named: bool, workdir: epath.Path
) -> ConfigDict:
    """Return the validated configuration that evaluates the prompts of `workdir` or init_from.

    Args:
      config: From the command line.
      overrides: From the command line; they take precedence over the saved configuration.
      dataset_named: Whether --config names a dataset, which then replaces the saved one.
      workdir: Folder of the run. Without a configuration in it, `config` is used.
    """
    elsewhere = overrides.get("init_from")
    if not elsewhere and not has_config(workdir):
        return _overridden(config, overrides)
    source = as_path(str(elsewhere)) if elsewhere else workdir
    saved = load_config(source)
    saved.update_from_flattened_dict(_as_trained(source))
    if dataset_named and config.dataset.name != saved.dataset.name:
        shots = saved.dataset.shots  # of the training
        saved.dataset = config.dataset.copy_and_resolve_references()
        saved.dataset.shots = shots
    return _overridden(saved, overrides)


def _as_trained(source: epath.Path) -> dict[str, Value]:
    """Return the settings that the newest prompts of a source were trained with.

    config.json has others if the run was resumed with those and then lost its newest checkpoint.
    """
    held = newest(source)
    settings = held.meta.get("settings", {}) if held else {}
    return {key: value for key, value in settings.items() if key in UNBOUND}


def _overridden(config: ConfigDict, overrides: Mapping[str, Value]) -> ConfigDict:
    config.update_from_flattened_dict(overrides)
    validate(config)
    return config


def save_config(config: ConfigDict, workdir: epath.Path) -> None:
    """Write config.json.  Only the first host writes.

    Raises:
      UserError: It cannot be written.
    """
    if is_first():
        make_folder(workdir, "--workdir")
        write_whole(workdir / CONFIG_FILE, json.dumps(config.to_dict(), indent=2) + "\n")


def has_config(workdir: epath.Path) -> bool:
    """Return whether a workdir has settings.  A power cut may have left the file empty."""
    file = workdir / CONFIG_FILE
    return file.exists() and size_of(file) > 0


def load_config(source: epath.Path) -> ConfigDict:
    """Return the configuration saved in a workdir or prompt file.

    A missing key has the default of common.py.

    Raises:
      UserError: There is no configuration, a key is unknown, or a value is impossible.
    """
    if is_prompt_file(source):
        file, saved = source, flat(read_header(source)["settings"])
    else:
        file = source / CONFIG_FILE
        if not file.exists():
            raise UserError(f"{source} is not a workdir of a run: it has no {CONFIG_FILE}.")
        with reading(file, "a configuration"):
            saved = flat(json.loads(file.read_text(encoding="utf-8")))
    config = common.get_config()
    try:
        for key, value in saved.items():
            if key not in KEYS:
                raise UserError(f"{key} is not a key{nearest(key)}")
            set_value(config, key, value, "")
        validate(config)
    except UserError as reason:
        raise UserError(f"{file}: {reason}") from reason
    own = source / SPLIT_FILE  # the run's own copy
    config.dataset.split = str(own) if file != source and own.exists() else ""
    return config


def saved_settings(workdir: epath.Path) -> dict[str, Value]:
    """Return the settings of a run by key, {} for a new run.

    Without config.json, they are those in the record of the newest checkpoint.
    """
    if has_config(workdir):
        return flat(load_config(workdir).to_dict())
    saved = newest(workdir)
    settings = saved.meta["settings"] if saved else {}
    # The record counts this layer from 1. The shapes of the prompts tell whether it changed.
    return {key: value for key, value in settings.items() if key != "cavpt.first_layer"}


def check_same_run(config: ConfigDict, workdir: epath.Path, may_change: Collection[str]) -> str:
    """Return, in words, the keys that differ from those of the run in `workdir`, "" if none.

    Keys of parts that the method lacks do not count.
    dtype=auto is the type that the run was started with.

    Raises:
      UserError: One of them is not in `may_change`.
    """
    old, new = saved_settings(workdir), flat(config.to_dict())
    if old and config.dtype == "auto":
        new["dtype"] = old["dtype"]
    without_use = sections_without_use(config.method)
    changed = {key: f"{key} ({old[key]!r:.200} there, {new[key]!r:.200} now)" for key in old
               if old[key] != new[key] and not key.startswith(without_use)}  # fmt: skip
    refused = [key for key in changed if key not in may_change]
    if refused:
        bound = any(key in BOUND for key in refused)
        raise UserError(
            f"{workdir} holds a run with other settings: "
            f"{', '.join(changed[key] for key in refused)}; use them, or another --workdir"
            f"{'' if bound else ', or allow the change with --allow_changes'}."
        )
    return ", ".join(changed.values())


def run_dir(runs: epath.Path, config: ConfigDict, name: str = "") -> epath.Path:
    """Return RUNS/METHOD/DATASET/SHOTSshot/seedN, with /base or /new for half the classes.

    name: in place of the method's.
    """
    dataset = config.dataset
    shots = "all" if dataset.shots < 0 else dataset.shots
    run = runs / (name or config.method) / dataset.name / f"{shots}shot" / f"seed{config.seed}"
    return run if dataset.classes == "all" else run / dataset.classes


def evaluation_dir(run: epath.Path, config: ConfigDict) -> epath.Path:
    """Return RUN/on/DATASET[-CLASSES], for a run's prompts on another dataset or other classes.

    For a prompt file, RUN is its name without .safetensors. A second folder of images has its name
    added: RUN/on/folder-NAME.
    """
    dataset = config.dataset
    name = dataset.name if dataset.classes == "all" else f"{dataset.name}-{dataset.classes}"
    on = folder_of(run) / "on"
    if dataset.name != "folder" or not dataset.root:
        return on / name
    root = as_path(dataset.root).resolve()
    names = itertools.chain(
        [name, f"{name}-{root.name}"], (f"{name}-{root.name}-{i}" for i in itertools.count(2))
    )
    return next(on / name for name in names if _root_of(on / name) in (None, root))


def source_of(workdir: epath.Path) -> epath.Path:
    """Return the workdir or prompt file that has the prompts of a folder.

    A run has its own. RUN/on/DATASET has those of RUN or RUN.safetensors, even if both have moved.
    Other results name theirs as init_from.
    """
    is_run = any((workdir / name).exists() for name in (FOLDER, TRAIN_FILES))
    if is_run or is_prompt_file(workdir):
        return workdir
    if workdir.parent.name == "on":
        run = workdir.parent.parent
        file = run.with_name(f"{run.name}{SUFFIX}")
        # A run and its exported file share this folder, and a report is on the run's prompts.
        if (run / FOLDER).exists():
            return run
        if file.is_file():
            return file
    named = ""
    if has_config(workdir):
        with contextlib.suppress(UserError):
            named = load_config(workdir).init_from
    return as_path(named) if named else workdir


def _root_of(folder: epath.Path) -> epath.Path | None:
    """Return the image folder of the results in a folder, None if unknown."""
    root = load_config(folder).dataset.root if has_config(folder) else ""
    return as_path(root).resolve() if root else None
