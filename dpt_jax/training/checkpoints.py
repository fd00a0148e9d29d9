"""Checkpoints of a run: prompts and optimizer by step; never CLIP's weights."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from dpt_jax import distributed
from dpt_jax.errors import UserError
from dpt_jax.io import as_path
from dpt_jax.logging import say
from dpt_jax.runtime.store_errors import StoreError
from dpt_jax.storage.shelf import open_shelf
from dpt_jax.training import manifest, prompt_file
from dpt_jax.training.digests import digest, digest_of_json
from dpt_jax.training.manifest import DamagedError
from dpt_jax.training.orbax_manager import open_manager

FOLDER = "checkpoints"
DAMAGED = "damaged"
DIGESTS = "digests"


class Saved(NamedTuple):
    """What evaluation and `init_from` need of a checkpoint.

    meta: method, backbone, classnames, dataset and classes of the training, as far as known.
    digest: of the prompts as they were saved.
    """

    step: int
    prompts: Any
    meta: dict[str, Any]
    digest: str = ""


class Checkpoints:
    """The newest few checkpoints of a workdir, written in the background.

    Each holds the items `prompts` and `meta`; those of a training run also
    `training` (optimizer state and running totals). The step is all that the
    loader needs to go on. A manifest has the digest of every file, and `meta`
    that of every item. Several hosts save and restore together, on a file
    system that they share, or through a bucket (see `shelf`); host 0 writes.
    """

    def __init__(self, workdir: epath.PathLike, keep: int = 2, create: bool = False) -> None:
        self._workdir = as_path(workdir).absolute()
        self.directory = self._workdir / FOLDER
        self._saving = -1
        self._closing = contextlib.ExitStack()
        try:
            self._shelf = open_shelf(self.directory, keep, create, self._closing)
            self._root = self._shelf.root
            finalizing = self._finish if create else None
            self._manager = open_manager(self._root, keep, finalizing, self._shelf.alone)
        except OSError as reason:
            self._closing.close()
            raise UserError(
                f"{self.directory} cannot be used for checkpoints ({reason})."
            ) from reason

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        with self._closing:
            self._manager.close()

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, the newest first."""
        return self._shelf.steps()

    def save(self, step: int, prompts: Any, meta: dict[str, Any], training: Any = None) -> None:
        """Start to write; the trees are of host arrays that nobody changes any more.

        The first checkpoint of a run is waited for and read back. Raise UserError where this
        checkpoint, or one that was started before, cannot be written.
        """
        first = not self.steps()
        if self._shelf.alone and not distributed.is_first():
            self._shelf.note(step)
        else:
            self._begin_to_save(step, prompts, meta, training)
        if first:
            self.wait()
            self._read_back(step)

    def _begin_to_save(self, step: int, prompts: Any, meta: dict[str, Any], training: Any) -> None:
        digests = {"prompts": digest(prompts), "meta": digest_of_json(meta)}
        items = {"prompts": ocp.args.StandardSave(prompts)}
        if training is not None:
            items["training"] = ocp.args.StandardSave(training)
            digests["training"] = digest(training)
        items["meta"] = ocp.args.JsonSave({**meta, DIGESTS: digests})
        with self._writing():
            self._finished()  # the manifest of the one before is of its own step
            self._saving = step
            self._manager.save(step, args=ocp.args.Composite(**items))

    def wait(self) -> None:
        """Return when everything is on disk, or in the bucket.  Raise UserError, see `save`."""
        with self._writing():
            self._finished()
        if self._shelf.alone:
            distributed.on_all_hosts(True)  # host 0 alone has had to wait

    def _finished(self) -> None:
        self._manager.wait_until_finished()
        self._shelf.settle()

    def load(self, step: int) -> Saved:
        """Return prompts (host arrays) and metadata of a step.

        Raise DamagedError, and UserError where the checkpoint cannot be read for another reason.
        """
        return self._read(step)[0]

    def resume(self, like_prompts: Any, like_training: Any) -> tuple[Saved, Any] | None:
        """Return the newest checkpoint that is whole, and its training item; None in a new run.

        like_prompts, like_training: trees of host arrays, whose structure and shapes they have.
        Damaged checkpoints that are newer are reported and moved aside, so that the run can write
        theirs again. Raise UserError, and move nothing, where a checkpoint cannot be read for
        another reason than damage, is of prompts alone or of other shapes, or none is whole.
        """
        damaged: dict[int, DamagedError | None] = {}
        steps = self.steps()
        distributed.check_same(lambda: {"list of checkpoints (workdir)": repr(steps)})
        for step in steps:
            damage, failure, found = None, None, None
            try:
                saved, digests = self._read(step)
                self._check_fits(saved, like_prompts)
                found = saved, self._read_training(step, like_training, digests)
            except DamagedError as reason:
                damage = reason
            except UserError as reason:
                failure = reason
            if not distributed.on_all_hosts(failure is None):
                raise failure or UserError(f"another host cannot read step {step}.")
            if distributed.on_all_hosts(damage is None):
                for other, why in damaged.items():
                    self._set_aside(other, why)
                return found
            damaged[step] = damage
        if damaged:
            first = next(filter(None, damaged.values()), "another host cannot read them")
            raise UserError(
                f"none of the {len(damaged)} checkpoints in {self.directory} is whole: {first}. "
                "To start over at step 0, remove that folder and give the same command again."
            )
        return None

    def _read(self, step: int) -> tuple[Saved, dict[str, str]]:
        """Return prompts, metadata, and the digests of all items; older versions have none."""
        self._shelf.fetch(step)
        with self._verified(step):
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
            self._compare(step, digests, "prompts", digest(prompts))
            self._compare(step, digests, "meta", digest_of_json(meta))
        return Saved(step, prompts, meta, digest(prompts)), digests

    def _read_training(self, step: int, like: Any, digests: dict[str, str]) -> Any:
        if not (self._root / str(step) / "training").is_dir() and "training" not in digests:
            raise UserError(
                f"{self.directory} holds prompts without a training state, so there is no run to "
                "go on with: start one from them with --config.init_from and another --workdir."
            )
        with self._verified(step):
            there = self._manager.item_metadata(step)["training"]
            fields = set(getattr(there, "tree", there))
        if fields != set(like):
            raise UserError(
                f"{self.directory / str(step)} has a training state of another version "
                f"({', '.join(sorted(fields))}), which this one cannot go on with: finish the run "
                "with the version that began it, or start from its prompts with "
                "--config.init_from and another --workdir."
            )
        with self._verified(step):
            like = jax.tree.map(np.asarray, like)
            items = ocp.args.Composite(training=ocp.args.StandardRestore(like))
            training = jax.tree.map(np.asarray, self._manager.restore(step, args=items)["training"])
            self._compare(step, digests, "training", digest(training))
            if jax.tree.map(np.shape, training) != jax.tree.map(np.shape, like):
                raise ValueError("its training state has other shapes than this version's")
        return training

    def _verified(self, step: int) -> contextlib.AbstractContextManager[None]:
        return manifest.verified(self._root / str(step), str(self.directory / str(step)))

    def _check_fits(self, saved: Saved, like: Any) -> None:
        there, here = (jax.tree.map(np.shape, tree) for tree in (saved.prompts, like))
        if there != here:
            raise UserError(
                f"{self.directory / str(saved.step)} has prompts of other shapes than these "
                "settings ask for: go on with the settings that it was started with, or use "
                "another --workdir."
            )

    def _read_back(self, step: int) -> None:
        """Raise UserError where what was just written cannot be read."""
        try:
            self._shelf.refetch(step)
            self._read(step)
        except (DamagedError, UserError) as reason:
            raise UserError(
                f"{self.directory}: the first checkpoint was written but cannot be read back "
                f"({str(reason).removesuffix('.')}): use another --workdir."
            ) from reason

    def _set_aside(self, step: int, reason: DamagedError | None) -> None:
        """Move a damaged checkpoint to WORKDIR/damaged, on host 0."""
        if distributed.is_first():
            aside = self._workdir / DAMAGED / str(step)
            while aside.exists():
                aside = aside.parent / f"{aside.name}.again"
            self._shelf.set_aside(step, aside)
            why = reason or "another host cannot read a checkpoint"
            say(f"{why}: moved to {aside}; going on from the one before.", file=sys.stderr)
        self._shelf.forget(step)
        distributed.on_all_hosts(True)  # no host looks again before it is moved
        self._manager.reload()

    def _finish(self) -> None:
        """Write the manifest of what Orbax is about to make final, and to a bucket, on host 0."""
        if not distributed.is_first():
            return
        for folder in self._root.iterdir():
            if folder.name.partition(".")[0] == str(self._saving):
                manifest.write(folder)
                self._shelf.put(folder, self._saving)

    def _compare(self, step: int, digests: dict[str, str], item: str, found: str) -> None:
        if digests and digests.get(item) != found:
            raise DamagedError(
                f"{self.directory / str(step)} is damaged "
                f"(the digest of its {item} is not the one that was written)"
            )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        # Orbax and TensorStore have no type of their own.
        except (OSError, ValueError, RuntimeError) as reason:
            whole = self.steps()
            last = f"the last whole one is of step {whole[0]}" if whole else "there is none yet"
            way_out = "Give" if isinstance(reason, StoreError) else "Make room, and give"
            raise UserError(
                f"{self.directory}: a checkpoint cannot be written ({reason}); {last}. "
                f"{way_out} the same command again."
            ) from reason


def load_newest(workdir: epath.PathLike) -> Saved:
    """Return the newest whole prompts of a workdir, or those of a prompt file.

    Damaged checkpoints are reported. Raise UserError where there are no prompts.
    """
    source = as_path(workdir)
    if prompt_file.is_prompt_file(source):
        step, prompts, meta = prompt_file.read(source)
        return Saved(step, prompts, meta, digest(prompts))
    whole = ""
    if (source / FOLDER).is_dir():
        with Checkpoints(source) as checkpoints:
            for step in checkpoints.steps():
                try:
                    return checkpoints.load(step)
                except DamagedError as reason:
                    say(f"{reason}: trying the one before.", file=sys.stderr)
                    whole = " that is whole"
    raise UserError(
        f"{workdir} holds no checkpoint{whole}: train there first, or name another --workdir."
    )
