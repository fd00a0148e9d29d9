"""Opening Orbax's manager of a folder of checkpoints."""

from collections.abc import Callable

import jax
import orbax.checkpoint as ocp
from etils import epath

ITEMS = {
    "prompts": (ocp.StandardCheckpointHandler, ocp.args.StandardSave, ocp.args.StandardRestore),
    "training": (ocp.StandardCheckpointHandler, ocp.args.StandardSave, ocp.args.StandardRestore),
    "meta": (ocp.JsonCheckpointHandler, ocp.args.JsonSave, ocp.args.JsonRestore),
}


def open_manager(
    folder: epath.Path, keep: int, finalizing: Callable[[], None] | None, alone: bool = False
) -> ocp.CheckpointManager:
    """Return a manager of a folder.

    finalizing: called when the items of a checkpoint are complete, before the checkpoint becomes
    final; None for a manager that only reads. alone: whether the folder is this host's own, and
    not one that all hosts share and save to together.
    """
    writes = finalizing is not None
    hosts = _this_host_alone() if alone else ocp.options.MultiprocessingOptions()
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        create=writes and not alone,
        multiprocessing_options=hosts,
        enable_async_checkpointing=writes,
        async_options=ocp.options.AsyncOptions(post_finalization_callback=finalizing)
        if writes
        else None,
    )
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for item, (handler, save, restore) in ITEMS.items():
        made = handler(multiprocessing_options=hosts)
        registry.add(item, save, made)
        registry.add(item, restore, made)
    return ocp.CheckpointManager(folder, options=options, handler_registry=registry)


def _this_host_alone() -> ocp.options.MultiprocessingOptions:
    host = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=host, active_processes={host}, barrier_sync_key_prefix=f"host{host}"
    )
