"""The checkpoints of a run on a disk that all hosts share."""

import contextlib

from etils import epath

from dpt_jax import distributed
from dpt_jax.clip.orbax import without_wildcards
from dpt_jax.io import entries


class Shelf:
    """A folder of a disk with a folder for each step, in which Orbax writes and reads.

    root: the folder as Orbax may take it. alone: whether it is this host's own.
    """

    alone = False

    def __init__(self, folder: epath.Path, writes: bool, closing: contextlib.ExitStack) -> None:
        """closing: removes what is needed for a time."""
        self._folder = folder
        if writes and distributed.is_first():
            folder.mkdir(parents=True, exist_ok=True)
        self.root = closing.enter_context(without_wildcards(folder))

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, the newest first."""
        return sorted(steps_on_disk(self._folder), reverse=True)

    def fetch(self, step: int) -> None:
        """See to it that a checkpoint is in the root."""

    def refetch(self, step: int) -> None:
        """See to it that what is in the root is what the others see."""

    def put(self, folder: epath.Path, step: int) -> None:
        """Take a checkpoint that is complete in the root; called on host 0, in the background."""

    def note(self, step: int) -> None:
        """Count a checkpoint that host 0 puts."""

    def settle(self) -> None:
        """Raise StoreError where a checkpoint could not be put."""

    def set_aside(self, step: int, aside: epath.Path) -> None:
        """Move a checkpoint away; called on host 0."""
        aside.parent.mkdir(exist_ok=True)
        (self._folder / str(step)).rename(aside)

    def forget(self, step: int) -> None:
        """Take a checkpoint for gone that host 0 sets aside."""


def steps_on_disk(folder: epath.Path) -> list[int]:
    """Return the steps that have a folder; one that Orbax still writes has another name."""
    names = [name for name, is_folder in entries(folder) if is_folder] if folder.is_dir() else []
    return [int(name) for name in names if name.isdecimal()]
