"""The workdir of a run: its path, its settings in config.json, its lists of images, its lock."""

import contextlib
import fcntl
import itertools
import json
import os
import platform
from collections.abc import Iterator, Mapping

from etils import epath
from ml_collections import ConfigDict

from dpt_jax import distributed
from dpt_jax.config import SECTION_OF, UNBOUND, Value, flat, validate
from dpt_jax.configs import common
from dpt_jax.data.records import Dataset
from dpt_jax.errors import UserError
from dpt_jax.io import as_path, file_system, is_remote, make_folder, reading, size_of, write_whole
from dpt_jax.logging import say
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
LOCK_FILE = ".lock"
SPLIT_FILE = "split.csv"  # of a run on images whose folders do not define the split
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

    It is the saved one, if there is one, with the `overrides` of the command line. If the --config
    of the command line names a dataset (`dataset_named`), that replaces the saved one.
    """
    elsewhere = overrides.get("init_from")
    if elsewhere or has_config(workdir):
        given, config = config, load_config(as_path(str(elsewhere)) if elsewhere else workdir)
        if dataset_named and given.dataset.name != config.dataset.name:
            shots = config.dataset.shots  # of the training
            config.dataset = given.dataset.copy_and_resolve_references()
            config.dataset.shots = shots
    return _overridden(config, overrides)


def _overridden(config: ConfigDict, overrides: Mapping[str, Value]) -> ConfigDict:
    config.update_from_flattened_dict(overrides)
    validate(config)
    return config


def save_config(config: ConfigDict, workdir: epath.Path) -> None:
    """Write config.json, on host 0."""
    if distributed.is_first():
        make_folder(workdir, "--workdir")
        write_whole(workdir / CONFIG_FILE, json.dumps(config.to_dict(), indent=2) + "\n")


def has_config(workdir: epath.Path) -> bool:
    """Return whether a workdir has settings.  A power cut may have left the file empty."""
    file = workdir / CONFIG_FILE
    return file.exists() and size_of(file) > 0


def load_config(source: epath.Path) -> ConfigDict:
    """Return the settings of a workdir or prompt file, or if they differ, of its newest prompts.

    They differ if a run was resumed with other settings (--allow_changes) and ended before its next
    checkpoint. A missing key has the default of common.py.
    """
    config = common.get_config().lock()
    file = source if is_prompt_file(source) else source / CONFIG_FILE
    if not file.exists():
        raise UserError(f"{file} does not exist: give the workdir of a run, or a prompt file.")
    with reading(file, "a configuration"):
        if file == source:
            saved = flat(read_header(source)["settings"])
        else:
            saved = flat(json.loads(file.read_text(encoding="utf-8")))
            trained = prompts.meta["settings"] if (prompts := newest(source)) else {}
            saved |= {key: value for key, value in trained.items() if key in UNBOUND}
        # The run's own copy of the split: the list in its settings may be on another machine.
        own = source / SPLIT_FILE
        saved["dataset.split"] = str(own) if file != source and own.exists() else ""
        config.update_from_flattened_dict(saved)
        try:
            validate(config)
        except UserError as reason:
            raise ValueError(reason) from reason
    return config.unlock()


def write_train_files(dataset: Dataset, workdir: epath.Path) -> None:
    """Write the list of a run's training images and its split, on host 0."""
    if distributed.is_first():
        paths = "".join(f"{example.path}\n" for example in dataset.train)
        write_whole(workdir / TRAIN_FILES, paths)
    write_split(dataset, workdir)


def write_split(dataset: Dataset, workdir: epath.Path) -> None:
    """Write the split of a dataset whose folders do not define it, on host 0."""
    if dataset.split and distributed.is_first():
        write_whole(workdir / SPLIT_FILE, dataset.split)


def run_dir(runs: epath.Path, config: ConfigDict, name: str = "") -> epath.Path:
    """Return RUNS/METHOD/DATASET/SHOTSshot/seedN, with /base or /new for half the classes."""
    dataset = config.dataset
    shots = "all" if dataset.shots < 0 else dataset.shots
    run = runs / (name or config.method) / dataset.name / f"{shots}shot" / f"seed{config.seed}"
    return run if dataset.classes == "all" else run / dataset.classes


def evaluation_dir(run: epath.Path, config: ConfigDict) -> epath.Path:
    """Return RUN/on/DATASET[-CLASSES], for a run's prompts on another dataset or other classes.

    For a prompt file, RUN is its name without .safetensors. The second folder of images is
    RUN/on/folder-2, and so on.
    """
    dataset = config.dataset
    name = dataset.name if dataset.classes == "all" else f"{dataset.name}-{dataset.classes}"
    folder = folder_of(run) / "on" / name
    if dataset.name == "folder" and dataset.root:
        root = as_path(dataset.root).resolve()
        for number in itertools.count(2):
            there = load_config(folder).dataset.root if has_config(folder) else ""
            if not there or as_path(there).resolve() == root:
                break
            folder = folder.with_name(f"{name}-{number}")
    return folder


def source_of(workdir: epath.Path) -> epath.Path:
    """Return the workdir or prompt file that has the prompts of a folder.

    A run has its own. RUN/on/DATASET has those of RUN or RUN.safetensors, even if both have moved.
    Other results name theirs as init_from.
    """
    if is_prompt_file(workdir) or any((workdir / name).exists() for name in (FOLDER, TRAIN_FILES)):
        return workdir
    if workdir.parent.name == "on":
        run = workdir.parent.parent
        file = run.with_name(f"{run.name}{SUFFIX}")
        # A run and its exported file share this folder, and a report is on the run's prompts.
        if (run / FOLDER).exists():
            return run
        if file.is_file():
            return file
    named = load_config(workdir).init_from if has_config(workdir) else ""
    return as_path(named) if named else workdir


class LockedError(UserError):
    """Another process is training in the workdir."""


@contextlib.contextmanager
def locked(workdir: epath.Path) -> Iterator[None]:
    """Create the workdir and lock it against a second training; host 0 holds the lock.

    Raise LockedError on all hosts if another process holds it.
    """
    file, holder = workdir / LOCK_FILE, ""
    with contextlib.ExitStack() as held:
        if distributed.is_first():
            lock = _lock_in_bucket if is_remote(workdir) else _lock_on_disk
            holder = lock(file, f"process {os.getpid()} on {platform.node()}", held)
        if distributed.first_says(bool(holder)):
            by_hand = f"; if it was killed, `gcloud storage rm {file}`" if is_remote(file) else ""
            raise LockedError(
                f"{workdir} is in use by {holder or 'another training process'}: wait for it, stop "
                f"it, or use another --workdir{by_hand}."
            )
        yield


def is_locked(workdir: epath.Path) -> bool:
    """Return whether another process seems to be training in a workdir."""
    file = workdir / LOCK_FILE
    if not file.exists():
        return False
    if is_remote(workdir):
        return not _is_left_behind(file.read_text())
    with open(file) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as reason:
            return isinstance(reason, BlockingIOError)  # others: a file system without locks
    return False


def _lock_on_disk(file: epath.Path, owner: str, held: contextlib.ExitStack) -> str:
    """Lock with flock, which ends with the process; return who has the lock, "" if it is ours."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = held.enter_context(file.open("a+", encoding="utf-8"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        return lock.read().strip() or "another training process"
    except OSError as reason:  # a file system without locks
        say(f"{file} cannot be locked ({reason}): make sure that no other process trains here.")
    lock.truncate(0)
    lock.write(f"{owner}\n")
    lock.flush()
    return ""


def _lock_in_bucket(file: epath.Path, owner: str, held: contextlib.ExitStack) -> str:
    """Lock with an object, which a killed process leaves behind; return as `_lock_on_disk`."""
    if file.exists() and _is_left_behind(file.read_text()):
        file.unlink(missing_ok=True)
    try:
        file_system(file).pipe_file(os.fspath(file), owner.encode(), mode="create")
    except FileExistsError:
        return file.read_text()
    held.callback(file.unlink, missing_ok=True)
    return ""


def _is_left_behind(owner: str) -> bool:
    """Return whether a lock is from a process on this host that has ended."""
    words = owner.split()  # process PID on HOST
    if words[3:4] != [platform.node()]:
        return False
    with contextlib.suppress(PermissionError):  # of another user
        try:
            os.kill(int(words[1]), 0)
        except ProcessLookupError:
            return True
    return int(words[1]) == os.getpid()  # from before a container restart, with the same id
