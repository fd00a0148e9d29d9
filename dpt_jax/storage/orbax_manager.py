"""Opening Orbax's manager of a folder of checkpoints, whatever is in the folder's path."""

import contextlib
import os
import pathlib
import re
import tempfile
from collections.abc import Callable

import orbax.checkpoint as ocp
from etils import epath

ITEMS = {
    "prompts": (ocp.StandardCheckpointHandler, ocp.args.StandardSave, ocp.args.StandardRestore),
    "training": (ocp.StandardCheckpointHandler, ocp.args.StandardSave, ocp.args.StandardRestore),
    "meta": (ocp.JsonCheckpointHandler, ocp.args.JsonSave, ocp.args.JsonRestore),
}
WILDCARDS = re.compile(r"[\[\]*?\\]")


def open_manager(
    folder: epath.Path, keep: int, finalizing: Callable[[], None] | None
) -> ocp.CheckpointManager:
    """Return a manager of a folder.

    finalizing: called when the items of a checkpoint are complete, before the checkpoint becomes
    final; None for a manager that only reads.
    """
    writes = finalizing is not None
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        create=writes,
        enable_async_checkpointing=writes,
        async_options=ocp.options.AsyncOptions(post_finalization_callback=finalizing)
        if writes
        else None,
    )
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for item, (handler, save, restore) in ITEMS.items():
        made = handler()
        registry.add(item, save, made)
        registry.add(item, restore, made)
    return ocp.CheckpointManager(folder, options=options, handler_registry=registry)


def without_wildcards(folder: epath.Path, closing: contextlib.ExitStack) -> epath.Path:
    """Return the folder, or where Orbax would take its path for a pattern, a link to the folder.

    closing: removes the link.
    """
    path = os.fspath(folder)
    if "://" in path or not WILDCARDS.search(path):
        return folder
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not there")
    links = closing.enter_context(tempfile.TemporaryDirectory(prefix="dpt_jax-"))
    link = pathlib.Path(links) / folder.name
    link.symlink_to(path, target_is_directory=True)
    return epath.Path(link)
