"""Checks of the images before training: a table of them, and what would falsify accuracies."""

import collections
from collections.abc import Iterable, Sequence
from concurrent import futures

from ml_collections import ConfigDict
from PIL import ExifTags
from tabulate import tabulate

from dpt_jax.data.catalogue import EMBEDDED
from dpt_jax.data.dataset import READERS
from dpt_jax.data.records import Dataset, Files, UnreadableImageError, contents, opened
from dpt_jax.errors import UserError
from dpt_jax.io import is_remote
from dpt_jax.logging import Progress
from dpt_jax.methods import METHODS

MOST_ROWS = 20  # of the table of classes
MOST_DECODED = 2000  # images, those to train on first; of the others, the headers are read
UPRIGHT = 1  # the orientation of an image that is not rotated


def look(dataset: Dataset, config: ConfigDict) -> str:
    """Return a table of the classes and notes about the images.

    The user's own images are checked. Published and bundled ones are only counted.

    Args:
        dataset: with its few-shot sample.
        config: configuration of the training.

    Raises:
        UserError: an image cannot be read (unless dataset.on_error is skip), a class has no test
            images, or a file is in training or validation and in test (unless dataset.strict is
            off).
    """
    lines = [_table(dataset)]
    if is_own(config.dataset):
        lines += _empty_classes(dataset, config)
        if isinstance(dataset.read, Files):
            lines += _look_at_files(dataset, dataset.read, config)
    images, size = len(dataset.train), config.train.batch_size
    drops = METHODS[config.method].in_towers and not config.train.keep_partial
    left = images % min(size, images) if drops else 0
    if left:
        lines.append(
            f"each epoch leaves out {left} of {images} training images at random: "
            f"train.batch_size is {size} and train.keep_partial is off"
        )
    return "\n".join(lines)


def is_own(config: ConfigDict) -> bool:
    """Return whether the images of config.dataset are the user's own."""
    return config.source == "folder" and config.name not in EMBEDDED


def _table(dataset: Dataset) -> str:
    """Return the number of images by class and split, of the smallest classes if there are many."""
    splits = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    columns = {
        split: collections.Counter(example.label for example in examples)
        for split, examples in splits.items()
        if examples
    }
    classes = range(len(dataset.classnames))
    shown = list(classes)
    if len(shown) > MOST_ROWS:
        shown = sorted(classes, key=lambda c: sum(one[c] for one in columns.values()))[:MOST_ROWS]
    rows = [[dataset.classnames[c], *(one[c] for one in columns.values())] for c in shown]
    if len(shown) < len(classes):
        rows.append([f"… {len(classes) - len(shown)} more classes"])
    rows.append(["all", *(one.total() for one in columns.values())])
    return tabulate(rows, ["class", *columns], disable_numparse=[0])


def _empty_classes(dataset: Dataset, config: ConfigDict) -> list[str]:
    """Return a line about classes without test images, unless the dataset has no test images."""
    tested = {example.label for example in dataset.test}
    empty = [name for label, name in enumerate(dataset.classnames) if label not in tested]
    if not tested or not empty:
        return []
    return _refuse(config, f"classes without test images: {_some(empty)}")


def _look_at_files(dataset: Dataset, files: Files, config: ConfigDict) -> list[str]:
    """Return lines about unreadable, rotated and repeated files."""
    learned = list(dict.fromkeys(e.path for e in (*dataset.train, *dataset.val)))
    tested = list(dict.fromkeys(e.path for e in dataset.test))
    lines = []
    errors, rotated = _open_all(files, [*learned, *tested])
    if errors:
        what = errors[0].removesuffix(".")
        if config.dataset.on_error != "skip":
            more = f"; {len(errors) - 1} more cannot either" if len(errors) > 1 else ""
            raise UserError(
                f"{what}{more}: repair or remove what is broken, or leave such images out with "
                "--config.dataset.on_error=skip."
            )
        lines.append(f"unreadable images, which are left out: {len(errors)}, such as {what}")
    if rotated:
        more = f"{len(rotated)}, such as {rotated[0]}"
        lines.append(f"images rotated by their EXIF orientation: {more}")
    found = contents(files.root, [*learned, *tested])
    own = dict(zip(found, learned, strict=False))
    same = [
        f"{path} is {own[content]}"
        for path, content in zip(tested, found[len(learned) :], strict=True)
        if content in own
    ]
    if same:
        lines += _refuse(config, f"test images that are also in train or val: {_some(same)}")
    return lines


def _open_all(files: Files, paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return why images cannot be read, and which are rotated; images in a bucket are not opened.

    Decoded images are in the cache then.
    """
    decoded = {*paths[:MOST_DECODED]}

    def open_one(path: str) -> tuple[str, bool]:
        rotated = False
        try:
            if not is_remote(files.root):
                with opened(files.root / path) as image:
                    rotated = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT) != UPRIGHT
            if path in decoded:
                files(path)
        except UnreadableImageError as reason:
            return str(reason), False
        return "", rotated

    errors, turned = [], []
    with (
        Progress("images", len(paths)) as progress,
        futures.ThreadPoolExecutor(READERS) as threads,
    ):
        for path, (error, rotated) in zip(paths, threads.map(open_one, paths), strict=True):
            errors += [error] if error else []
            turned += [path] if rotated else []
            progress.advance()
    return errors, turned


def _refuse(config: ConfigDict, what: str) -> list[str]:
    """Return a line, or raise UserError if dataset.strict is on."""
    if config.dataset.strict:
        raise UserError(
            f"{what}; accuracies would be wrong, so repair this, or train all the same with "
            "--config.dataset.strict=False."
        )
    return [f"{what} (dataset.strict is off)"]


def _some(names: Iterable[str]) -> str:
    """Return the first three names."""
    found = list(names)
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
