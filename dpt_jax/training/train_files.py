"""The images that a run trains on: enough of them, and the same ones when it goes on."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from dpt_jax import distributed
from dpt_jax.config import SPLIT_FILE
from dpt_jax.data.dataset import digest_of_examples
from dpt_jax.data.records import Dataset, Example
from dpt_jax.errors import UserError
from dpt_jax.io import write_whole
from dpt_jax.logging import say

TRAIN_FILES = "train_files.txt"


def check_trainable(dataset: Dataset, name: str) -> None:
    """Raise UserError if a class has no image to train on."""
    if not dataset.train:
        raise UserError(
            f"{name} has test images only: train on another dataset, and test its prompts here "
            f"with --config=METHOD:{name} --mode=eval --config.init_from=WORKDIR."
        )
    without = sorted(set(range(len(dataset.classnames))) - {e.label for e in dataset.train})
    if without:
        missing = dataset.classnames[without[0]]
        raise UserError(
            f"{name} has no training images of class {missing!r}, so it cannot be trained on."
        )


def check_same_images(
    examples: Sequence[Example],
    workdir: pathlib.Path,
    meta: Mapping[str, Any],
    allow_changes: bool = False,
) -> None:
    """Raise UserError if a run that goes on was trained on other images before.

    meta: the record of its checkpoint, see training.record. With `allow_changes` the change
    is reported instead.
    """
    if meta["train_list"] == digest_of_examples(examples):
        return
    change = _in_words(read(workdir) or [], [example.path for example in examples])
    if not allow_changes:
        raise UserError(
            f"{workdir} was trained on other images than the dataset has now ({change}): use "
            "another --workdir, give the run its images again, or go on with these by "
            "--allow_changes."
        )
    say(f"{workdir}: going on with other images than it was trained on ({change}).")


def read(workdir: pathlib.Path) -> list[str] | None:
    """Return the paths that a run was started with, or None if it has written none."""
    file = workdir / TRAIN_FILES
    if not file.exists():
        return None
    text = file.read_bytes().decode(errors="surrogateescape")
    return text.removesuffix("\n").split("\n")


def write(dataset: Dataset, workdir: pathlib.Path) -> None:
    """Write the list of a run's training images and its split, on host 0."""
    if distributed.is_first():
        paths = "".join(f"{example.path}\n" for example in dataset.train)
        write_whole(workdir / TRAIN_FILES, paths)
    write_split(dataset, workdir)


def write_split(dataset: Dataset, workdir: pathlib.Path) -> None:
    """Write the split of a dataset whose folders do not say it, on host 0."""
    if dataset.split and distributed.is_first():
        write_whole(workdir / SPLIT_FILE, dataset.split)


def _in_words(before: Sequence[str], now: Sequence[str]) -> str:
    """Return what differs, with an example of each kind."""
    gone, new = sorted(set(before) - set(now)), sorted(set(now) - set(before))
    parts = [f"{len(before)} before, {len(now)} now"]
    parts += [f"{len(new)} new, such as {new[0]}"] if new else []
    parts += [f"{len(gone)} gone, such as {gone[0]}"] if gone else []
    if not (gone or new):
        parts = ["another order or other labels"]
    return "; ".join(parts)
