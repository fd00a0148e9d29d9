"""Where the checkpoints of a run stand: on a disk that all hosts share, or in a bucket."""

import contextlib

from etils import epath

from dpt_jax.io import is_remote
from dpt_jax.storage.disk_shelf import Shelf, steps_on_disk
from dpt_jax.storage.mirror import Mirror, whole_steps


def open_shelf(folder: epath.Path, keep: int, writes: bool, closing: contextlib.ExitStack) -> Shelf:
    """Return the shelf of a folder, local or in a bucket.  Raise OSError where there is none.

    keep: how many checkpoints stay there. closing: removes what is needed for a time.
    """
    if is_remote(folder):
        return Mirror(folder, keep, writes, closing)
    return Shelf(folder, writes, closing)


def steps_of(folder: epath.Path) -> list[int]:
    """Return the steps that have a checkpoint in a folder, local or in a bucket."""
    if is_remote(folder):
        return whole_steps(folder)
    return steps_on_disk(folder)
