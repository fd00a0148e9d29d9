"""Checkpoints of a run: prompts and optimizer state, but not CLIP's weights."""

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from dpt_jax import distributed
from dpt_jax.clip.blocks import PyTree
from dpt_jax.errors import UserError
from dpt_jax.io import as_path, entries, file_system, is_remote, reading, short, without_wildcards
from dpt_jax.logging import say
from dpt_jax.prompts import Prompts
from dpt_jax.training import prompt_file

FOLDER = "checkpoints"
DAMAGED = "damaged"
DIGESTS = "digests"
RESTORE = {
    "prompts": ocp.args.StandardRestore,
    "training": ocp.args.StandardRestore,
    "meta": ocp.args.JsonRestore,
}
COMMITTED = "commit_success.txt"  # in a bucket, which has no rename, Orbax writes it last


def digest(tree: PyTree) -> str:
    """Return the SHA-256 of a tree of host arrays: types, shapes and bytes, in the tree's order."""
    found = hashlib.sha256()
    for leaf in map(np.asarray, jax.tree.leaves(tree)):
        found.update(f"{leaf.dtype} {leaf.shape} ".encode())
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()


def digest_of_json(values: Any) -> str:
    """Return the SHA-256 of values as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


class DamagedError(Exception):
    """A file of a checkpoint is missing, cut, or not what was written."""


class Saved(NamedTuple):
    """Prompts of a checkpoint or a prompt file.

    Attributes:
      step: training step after which they were saved.
      prompts: a tree of host arrays.
      meta: the record of the training.
      digest: digest of the prompts.
    """

    step: int
    prompts: Prompts
    meta: dict[str, Any]
    digest: str = ""


class Checkpoints:
    """The newest checkpoints of a workdir, written in the background.

    Each has the items `prompts` and `meta`, and in a training run `training` (optimizer state and
    running totals). `meta` holds a digest of every item. Several hosts save and restore
    together, on a file system that they share or in a bucket; host 0 writes.

    Attributes:
      directory: folder of the checkpoints.
    """

    def __init__(self, workdir: epath.PathLike, keep: int = 2) -> None:
        """Make the folder of checkpoints.  keep: how many to keep."""
        self._workdir = as_path(workdir)
        self.directory = self._workdir / FOLDER
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=False)
        self._closing = contextlib.ExitStack()
        with reading(self.directory, "a folder of checkpoints"):
            if distributed.is_first() and not is_remote(self.directory):
                self.directory.mkdir(parents=True, exist_ok=True)
            root = self._closing.enter_context(without_wildcards(self.directory))
            self._manager = ocp.CheckpointManager(epath.Path(root), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        with self._closing:
            self._manager.close()

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, newest first."""
        return steps_of(self.directory)

    def save(
        self, step: int, prompts: Prompts, meta: dict[str, Any], training: PyTree = None
    ) -> None:
        """Start writing a checkpoint, which becomes the newest.

        Args:
          step: training step. Checkpoints of this and later steps are removed, such as those of a
            classifier when its run is extended.
          prompts: a tree of host arrays, which must not change afterwards.
          meta: the record of the training.
          training: a tree of host arrays.

        Raises:
          UserError: if this checkpoint, or the previous one, cannot be written.
        """
        digests = {"prompts": digest(prompts), "meta": digest_of_json(meta)}
        items = {"prompts": ocp.args.StandardSave(prompts)}
        if training is not None:
            digests["training"] = digest(training)
            items["training"] = ocp.args.StandardSave(training)
        items["meta"] = ocp.args.JsonSave({**meta, DIGESTS: digests})
        with self._writing():
            if step in self._manager.all_steps():
                self._manager.delete(step)
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
            if max(self._manager.all_steps(), default=0) > step:
                # The run may have no other checkpoint until this one is whole.
                self._manager.wait_until_finished()
                for later in self._manager.all_steps():
                    if later > step:
                        self._manager.delete(later)

    def wait(self) -> None:
        """Wait until everything is written.  Raise UserError, see `save`."""
        with self._writing():
            self._manager.wait_until_finished()

    def resume(self) -> tuple[Saved, PyTree, dict[int, str]] | None:
        """Return the newest intact checkpoint and its training item; None in a new run.

        The third value has the reason why each newer checkpoint is damaged, for `set_aside`.

        Raises:
          UserError: if a checkpoint has no training item or cannot be read for a reason other than
            damage, or if none is intact.
        """
        steps = self.steps()
        damaged: dict[int, str] = {}
        distributed.check_same(lambda: {"list of checkpoints (workdir)": repr(steps)})
        for step in steps:
            try:
                saved, training = restore(self.directory / str(step))
                reason = ""
            except DamagedError as error:
                reason = str(error)
            if not distributed.on_all_hosts(not reason):
                damaged[step] = reason or f"another host cannot read {self.directory / str(step)}"
                continue
            if training is None:
                raise UserError(
                    f"{self.directory} holds prompts without a training state, so it cannot be "
                    "resumed: start a run from them with --config.init_from and another "
                    "--workdir."
                )
            return saved, training, damaged
        if damaged:
            raise UserError(
                f"none of the {len(steps)} checkpoints in {self.directory} is intact: "
                f"{damaged[steps[0]]}. To start over at step 0, remove that folder and run the "
                "same command again."
            )
        return None

    def set_aside(self, damaged: dict[int, str]) -> None:
        """Move damaged checkpoints to WORKDIR/damaged, so that the run can write them again."""
        for step, reason in damaged.items() if distributed.is_first() else ():
            aside = self._workdir / DAMAGED / str(step)
            while aside.exists():
                aside = aside.parent / f"{aside.name}.again"
            aside.parent.mkdir(parents=True, exist_ok=True)
            there = self.directory / str(step)
            file_system(there).mv(os.fspath(there), os.fspath(aside), recursive=True)
            say(f"{reason}: moved to {aside}; resuming from an earlier one.", file=sys.stderr)
        if damaged:
            distributed.on_all_hosts(True)  # no host lists the folder before they are moved
            self._manager.reload()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as reason:  # Orbax, TensorStore and gcsfs have types of their own
            whole = self.steps()
            last = f"the last intact one is from step {whole[0]}" if whole else "there is none yet"
            raise UserError(
                f"{self.directory}: a checkpoint cannot be written ({short(reason)}); {last}. Free "
                "some space, and run the same command again."
            ) from reason


def steps_of(folder: epath.Path) -> list[int]:
    """Return the steps with a complete checkpoint in a folder, newest first."""
    found = entries(folder) if folder.is_dir() else ()
    steps = [int(name) for name, is_folder in found if is_folder and name.isdecimal()]
    if is_remote(folder):
        steps = [step for step in steps if (folder / str(step) / COMMITTED).exists()]
    return sorted(steps, reverse=True)


def restore(folder: epath.Path) -> tuple[Saved, PyTree]:
    """Return prompts, record and training item (None if missing) of a checkpoint.

    Digests are compared before anything is cast or reshaped.

    Raises:
      DamagedError: if a file is not what was written.
      UserError: if the checkpoint cannot be read for another reason.
    """
    try:
        present = {name for name, _ in entries(folder)}
        items = {name: args() for name, args in RESTORE.items() if name in present}
        with (
            without_wildcards(folder) as opened,
            ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader,
        ):
            found = dict(reader.restore(epath.Path(opened), ocp.args.Composite(**items)))
        meta = dict(found.pop("meta"))
        digests = meta.pop(DIGESTS)
        trees = {name: jax.tree.map(np.asarray, found[name]) for name in items if name != "meta"}
        own = {name: digest(tree) for name, tree in trees.items()}
        own["meta"] = digest_of_json(meta)
        if wrong := [name for name in digests if own.get(name) != digests[name]]:
            raise ValueError(f"the digest of its {wrong[0]} does not match")
        saved = Saved(int(folder.name), trees["prompts"], meta, own["prompts"])
        return saved, trees.get("training")
    except FileNotFoundError as reason:
        raise DamagedError(f"{folder} is damaged ({short(reason)})") from reason
    except (OSError, MemoryError):
        with reading(folder, "a checkpoint"):
            raise
    except Exception as reason:  # Orbax, TensorStore and JSON have types of their own
        _check_readable(folder)
        raise DamagedError(f"{folder} is damaged ({short(reason)})") from reason


def _check_readable(folder: epath.Path) -> None:
    """Raise UserError if the system refuses to read a file, which may then be intact."""
    with reading(folder, "a checkpoint"):
        for name, is_folder in entries(folder):
            if is_folder:
                _check_readable(folder / name)
            else:
                (folder / name).read_bytes()


def load_newest(workdir: epath.PathLike) -> Saved:
    """Return the newest intact prompts of a workdir, or the prompts of a prompt file.

    A warning is printed for damaged checkpoints.

    Raises:
      UserError: if there are no prompts.
    """
    source = as_path(workdir)
    if prompt_file.is_prompt_file(source):
        step, prompts, meta = prompt_file.read(source)
        return Saved(step, prompts, meta, digest(prompts))
    whole = ""
    if (source / FOLDER).is_dir():
        for step in steps_of(source / FOLDER):
            try:
                return restore(source / FOLDER / str(step))[0]
            except DamagedError as reason:
                say(f"{reason}: trying the previous one.", file=sys.stderr)
                whole = " that is intact"
    raise UserError(
        f"{workdir} holds no checkpoint{whole}: train there first, or name another --workdir."
    )


def newest(source: epath.Path) -> Saved | None:
    """Identify the newest prompts of a workdir or a prompt file; None if it has none.

    The prompts themselves are read only from a prompt file, or if the record is damaged.

    Raises:
      UserError: if they cannot be read.
    """
    if prompt_file.is_prompt_file(source):
        if not source.is_file():
            return None
    elif steps := steps_of(source / FOLDER):
        try:
            file = source / FOLDER / str(steps[0]) / "meta" / "metadata"
            meta = json.loads(file.read_bytes())
            return Saved(steps[0], {}, meta, str(meta[DIGESTS]["prompts"]))
        except (OSError, ValueError, KeyError, TypeError):
            pass  # damaged
    else:
        return None
    return load_newest(source)
