"""Checkpoints of a run: prompts and optimizer by step; never CLIP's weights."""

import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from dpt_jax import prompt_file
from dpt_jax.errors import UserError

FOLDER = "checkpoints"


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
    loader needs to go on. Several hosts save and restore together, on a file
    system that they share; the first of them writes.
    """

    def __init__(self, workdir: pathlib.Path, keep: int = 2, create: bool = False) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=create, enable_async_checkpointing=create)
        self.directory = workdir.absolute() / FOLDER
        handlers = {
            "prompts": ocp.StandardCheckpointHandler(),
            "training": ocp.StandardCheckpointHandler(),
            "meta": ocp.JsonCheckpointHandler(),
        }
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        saves = {"prompts": ocp.args.StandardSave, "training": ocp.args.StandardSave, "meta": ocp.args.JsonSave}
        restores = {
            "prompts": ocp.args.StandardRestore,
            "training": ocp.args.StandardRestore,
            "meta": ocp.args.JsonRestore,
        }
        for item, handler in handlers.items():
            registry.add(item, saves[item], handler)
            registry.add(item, restores[item], handler)
        self._manager = ocp.CheckpointManager(self.directory, options=options, handler_registry=registry)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def newest(self) -> int | None:
        """The step of the newest checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, prompts: Any, meta: dict[str, Any], training: Any = None) -> None:
        """Starts writing; the trees are of host arrays that nobody changes any more."""
        items = {"prompts": ocp.args.StandardSave(prompts), "meta": ocp.args.JsonSave(meta)}
        if training is not None:
            items["training"] = ocp.args.StandardSave(training)
        self._manager.save(step, args=ocp.args.Composite(**items))

    def wait(self) -> None:
        """Returns when everything is on disk."""
        self._manager.wait_until_finished()

    def load_prompts(self, step: int) -> Saved:
        """Prompts (host arrays) and metadata of a step."""
        there = self._manager.item_metadata(step)["prompts"]
        wanted = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), getattr(there, "tree", there))
        items = ocp.args.Composite(prompts=ocp.args.StandardRestore(wanted), meta=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=items)
        return Saved(step, jax.tree.map(np.asarray, restored["prompts"]), restored["meta"])

    def load_training(self, step: int, training: Any) -> Any:
        """The training item of a step, in the structure of `training`.

        Raises UserError where the checkpoint is one of prompts alone.
        """
        if "training" not in self._manager.item_metadata(step):
            raise UserError(
                f"{self.directory} holds prompts without a training state, so there is no run to go on with: "
                "start one from them with --config.init_from and another --workdir."
            )
        wanted = jax.tree.map(np.asarray, training)
        items = ocp.args.Composite(training=ocp.args.StandardRestore(wanted))
        return self._manager.restore(step, args=items)["training"]


def load_newest(workdir: pathlib.Path) -> Saved:
    """The newest prompts of a workdir, or those of a prompt file.  Raises UserError where there are none."""
    if prompt_file.is_prompt_file(workdir):
        return Saved(*prompt_file.read(workdir))
    if (workdir / FOLDER).is_dir():
        with Checkpoints(workdir) as checkpoints:
            if (step := checkpoints.newest()) is not None:
                return checkpoints.load_prompts(step)
    raise UserError(f"{workdir} holds no checkpoint: train there first, or name another --workdir.")
