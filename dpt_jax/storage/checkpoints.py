"""Checkpoints of a run: prompts and optimizer by step; never CLIP's weights."""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import platform
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from dpt_jax.errors import UserError
from dpt_jax.runtime import devices
from dpt_jax.runtime.console import say
from dpt_jax.storage import prompt_file

FOLDER = "checkpoints"
DAMAGED = "damaged"
LOCK_FILE = ".lock"
DIGESTS = "digests"


class DamagedError(Exception):
    """A checkpoint that cannot be read, or is not what was written."""


class Saved(NamedTuple):
    """What evaluation and `init_from` need of a checkpoint. meta: method, backbone, classnames, dataset and
    classes of its training, as far as they are known."""

    step: int
    prompts: Any
    meta: dict[str, Any]


class Checkpoints:
    """The newest few checkpoints of a workdir, written in the background.

    Each holds the items `prompts` and `meta`; those of a training run also
    `training` (optimizer state and running totals). The step is all that the
    loader needs to go on. `meta` has a digest of each, by which damage is
    recognised that still reads. Several hosts save and restore together, on a file
    system that they share; the first of them writes.
    """

    def __init__(self, workdir: pathlib.Path, keep: int = 2, create: bool = False) -> None:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=create, enable_async_checkpointing=create
        )
        self.directory = workdir.absolute() / FOLDER
        handlers = {
            "prompts": ocp.StandardCheckpointHandler(),
            "training": ocp.StandardCheckpointHandler(),
            "meta": ocp.JsonCheckpointHandler(),
        }
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        saves = {
            "prompts": ocp.args.StandardSave,
            "training": ocp.args.StandardSave,
            "meta": ocp.args.JsonSave,
        }
        restores = {
            "prompts": ocp.args.StandardRestore,
            "training": ocp.args.StandardRestore,
            "meta": ocp.args.JsonRestore,
        }
        for item, handler in handlers.items():
            registry.add(item, saves[item], handler)
            registry.add(item, restores[item], handler)
        self._manager = ocp.CheckpointManager(
            self.directory, options=options, handler_registry=registry
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, the newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def save(self, step: int, prompts: Any, meta: dict[str, Any], training: Any = None) -> None:
        """Starts writing; the trees are of host arrays that nobody changes any more.

        Raises UserError where this, or what was started before, cannot be written.
        """
        digests = {"prompts": digest(prompts), "meta": _digest_of_json(meta)}
        items = {"prompts": ocp.args.StandardSave(prompts)}
        if training is not None:
            items["training"] = ocp.args.StandardSave(training)
            digests["training"] = digest(training)
        items["meta"] = ocp.args.JsonSave({**meta, DIGESTS: digests})
        with self._writing():
            self._manager.save(step, args=ocp.args.Composite(**items))

    def wait(self) -> None:
        """Returns when everything is on disk.  Raises UserError, see `save`."""
        with self._writing():
            self._manager.wait_until_finished()

    def load(self, step: int) -> Saved:
        """Prompts (host arrays) and metadata of a step.  Raises DamagedError."""
        return self._read(step)[0]

    def resume(self, like_prompts: Any, like_training: Any) -> tuple[Saved, Any] | None:
        """The newest checkpoint that is whole, and its training item; None where there is none to go on with.

        like_prompts, like_training: trees of host arrays, whose structure and
        shapes they have. Damaged checkpoints are told and moved
        aside, so that the run can write theirs again. Raises UserError where a
        checkpoint is whole, but of prompts alone or of other shapes.
        """
        for step in self.steps():
            damage = None
            try:
                saved, digests = self._read(step)
                self._check_fits(saved, like_prompts)
                training = self._read_training(step, like_training, digests)
            except DamagedError as reason:
                damage = reason
            if devices.on_all_hosts(damage is None):
                return saved, training
            self._set_aside(step, damage)
        return None

    def _read(self, step: int) -> tuple[Saved, dict[str, str]]:
        """Prompts, metadata, and the digests of all items; of a checkpoint of older versions there are none."""
        with _reading(self.directory / str(step)):
            there = self._manager.item_metadata(step)["prompts"]
            wanted = jax.tree.map(
                lambda leaf: np.empty(leaf.shape, leaf.dtype), getattr(there, "tree", there)
            )
            items = ocp.args.Composite(
                prompts=ocp.args.StandardRestore(wanted), meta=ocp.args.JsonRestore()
            )
            restored = self._manager.restore(step, args=items)
            prompts, meta = jax.tree.map(np.asarray, restored["prompts"]), dict(restored["meta"])
            digests = meta.pop(DIGESTS, {})
            _compare(digests, "prompts", digest(prompts))
            _compare(digests, "meta", _digest_of_json(meta))
        return Saved(step, prompts, meta), digests

    def _read_training(self, step: int, like: Any, digests: dict[str, str]) -> Any:
        directory = self.directory / str(step)
        if not (directory / "training").is_dir() and "training" not in digests:
            raise UserError(
                f"{self.directory} holds prompts without a training state, so there is no run to go on with: "
                "start one from them with --config.init_from and another --workdir."
            )
        with _reading(directory):
            there = self._manager.item_metadata(step)["training"]
            fields = set(getattr(there, "tree", there))
        if fields != set(like):
            raise UserError(
                f"{directory} has a training state of another version ({', '.join(sorted(fields))}), "
                "which this one cannot go on with: finish the run with the version that began it, "
                "or start from its prompts with --config.init_from and another --workdir."
            )
        with _reading(directory):
            items = ocp.args.Composite(
                training=ocp.args.StandardRestore(jax.tree.map(np.asarray, like))
            )
            training = jax.tree.map(np.asarray, self._manager.restore(step, args=items)["training"])
            _compare(digests, "training", digest(training))
        return training

    def _check_fits(self, saved: Saved, like: Any) -> None:
        there, here = (jax.tree.map(np.shape, tree) for tree in (saved.prompts, like))
        if there != here:
            raise UserError(
                f"{self.directory / str(saved.step)} has prompts of other shapes than these settings ask for: "
                "go on with the settings that it was started with, or use another --workdir."
            )

    def _set_aside(self, step: int, reason: DamagedError | None) -> None:
        """Moves a damaged checkpoint to WORKDIR/damaged, on the first host."""
        if devices.is_first():
            aside = self.directory.parent / DAMAGED / str(step)
            while aside.exists():
                aside = aside.with_name(f"{aside.name}.again")
            aside.parent.mkdir(exist_ok=True)
            (self.directory / str(step)).rename(aside)
            why = reason or "another host cannot read a checkpoint"
            say(f"{why}: moved to {aside}; going on from the one before.", file=sys.stderr)
        devices.on_all_hosts(True)  # none looks again before it is moved
        self._manager.reload()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (
            OSError,
            ValueError,
            RuntimeError,
        ) as reason:  # Orbax and TensorStore have no type of their own
            whole = self.steps()
            last = (
                f"the last one that is whole is of step {whole[0]}"
                if whole
                else "there is none yet"
            )
            raise UserError(
                f"{self.directory}: a checkpoint cannot be written ({reason}); {last}. Make room, and give the same "
                "command again."
            ) from reason


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps a second training out of a workdir, on the first host; the lock ends with the process, however that ends.

    Raises UserError where another process has it.
    """
    if not devices.is_first():
        yield
        return
    with (workdir / LOCK_FILE).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as reason:
            lock.seek(0)
            raise UserError(
                f"{workdir} is being trained in by {lock.read().strip() or 'another process'}: wait for it, stop it, "
                "or use another --workdir."
            ) from reason
        except OSError as reason:  # a file system without locks
            say(
                f"{workdir} cannot be locked ({reason}): see to it that no other process trains there."
            )
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {platform.node()}\n")
        lock.flush()
        yield


def load_newest(workdir: pathlib.Path) -> Saved:
    """The newest prompts of a workdir that are whole, or those of a prompt file.  Raises UserError where there are
    none; damaged ones are told."""
    if prompt_file.is_prompt_file(workdir):
        return Saved(*prompt_file.read(workdir))
    whole = ""
    if (workdir / FOLDER).is_dir():
        with Checkpoints(workdir) as checkpoints:
            for step in checkpoints.steps():
                try:
                    return checkpoints.load(step)
                except DamagedError as reason:
                    say(f"{reason}: trying the one before.", file=sys.stderr)
                    whole = " that is whole"
    raise UserError(
        f"{workdir} holds no checkpoint{whole}: train there first, or name another --workdir."
    )


def digest(tree: Any) -> str:
    """SHA-256 of a tree of host arrays: types, shapes and bytes, in the tree's order."""
    found = hashlib.sha256()
    for leaf in map(np.asarray, jax.tree.leaves(tree)):
        found.update(f"{leaf.dtype} {leaf.shape} ".encode())
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()


def _digest_of_json(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _compare(digests: dict[str, str], item: str, found: str) -> None:
    if digests and digests[item] != found:
        raise ValueError(f"the digest of its {item} is not the one that was written")


@contextlib.contextmanager
def _reading(directory: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except (
        Exception
    ) as reason:  # Orbax, TensorStore and JSON have their own types for every kind of damage
        raise DamagedError(
            f"{directory} is damaged ({' '.join(str(reason).split())[:200]})"
        ) from reason
