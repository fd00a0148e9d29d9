"""Checks of the images before training: are there enough, and what would distort accuracies."""

import collections
import contextlib
from collections.abc import Sequence
from concurrent import futures

from ml_collections import ConfigDict
from PIL import ExifTags
from tabulate import tabulate

from dpt_jax.data.catalogue import EMBEDDED
from dpt_jax.data.loader import threads
from dpt_jax.data.records import Dataset, Files, UnreadableImageError, contents, opened
from dpt_jax.errors import UserError
from dpt_jax.io import is_remote
from dpt_jax.logging import Progress
from dpt_jax.methods import METHODS

MOST_ROWS = 20  # of the table of classes
MOST_DECODED = 2000  # images, those to train on first; of the rest, only headers are read
UPRIGHT = 1  # the orientation of an image that is not rotated


def check_trainable(dataset: Dataset, config: ConfigDict) -> None:
    """Raise UserError if a class has too few images to train on."""
    name = config.dataset.name
    if not dataset.train:
        raise UserError(
            f"{name} has test images only: train on another dataset, and test its prompts here "
            f"with --config=METHOD:{name} --mode=eval --config.init_from=WORKDIR."
        )
    images = collections.Counter(example.label for example in dataset.train)
    for label, classname in enumerate(dataset.classnames):
        if not images[label]:
            raise UserError(
                f"{name} has no training images of class {classname!r}: add some, or leave out "
                "the class."
            )
        if images[label] == 1 and config.classifier.select == "support":
            raise UserError(
                "classifier.select=support holds out one training image per class, but class "
                f"{classname!r} has only one: add images, or use classifier.select=none."
            )


def check_readable(dataset: Dataset) -> None:
    """Raise UserError if no training image of a class, or no test image, can be read.

    Reads one image of each class and one test image, and more only if those are unreadable.
    """
    groups: dict[str, list[str]] = {}
    for example in dataset.train:
        name = f"training images of class {dataset.classnames[example.label]!r}"
        groups.setdefault(name, []).append(example.path)
    if dataset.test:
        groups["test images"] = [example.path for example in dataset.test]

    def one_is_readable(paths: list[str]) -> bool:
        for path in paths:
            with contextlib.suppress(UnreadableImageError):
                dataset.read(path)
                return True
        return False

    with futures.ThreadPoolExecutor(threads()) as pool:
        found = pool.map(one_is_readable, groups.values())
        for (name, paths), readable in zip(groups.items(), found, strict=True):
            if not readable:
                raise UserError(
                    f"none of the {len(paths)} {name} can be read, such as {paths[0]}: repair them."
                )


def look(dataset: Dataset, config: ConfigDict) -> str:
    """Return a table of the classes and notes about the images.

    The user's own images are checked. Published and bundled ones are only counted.

    Args:
        dataset: with its few-shot sample.
        config: configuration of the training.

    Raises:
        UserError: an image cannot be read (unless dataset.on_error is skip), a class has no test
            images, or a test file is also in training or validation (unless dataset.strict is
            off).
    """
    lines = [_table(dataset)]
    if is_own(config.dataset):
        tested = {example.label for example in dataset.test}
        untested = [name for label, name in enumerate(dataset.classnames) if label not in tested]
        if tested and untested:  # a dataset may have no test images at all
            lines.append(_refuse(config, "classes without test images", untested))
        if type(dataset.read) is Files:  # none is in memory
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


def _look_at_files(dataset: Dataset, files: Files, config: ConfigDict) -> list[str]:
    """Return lines about unreadable, rotated and repeated files."""
    learned = list(dict.fromkeys(e.path for e in (*dataset.train, *dataset.val)))
    tested = list(dict.fromkeys(e.path for e in dataset.test))
    lines = []
    errors, rotated = _open_all(files, [*learned, *tested])
    if errors:
        what = errors[0].removesuffix(".")
        if config.dataset.on_error != "skip":
            more = f"; {len(errors) - 1} more cannot be read" if len(errors) > 1 else ""
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
    pairs = zip(tested, found[len(learned) :], strict=True)
    if same := [f"{path} is {own[content]}" for path, content in pairs if content in own]:
        lines.append(_refuse(config, "test images that are also in train or val", same))
    return lines


def _open_all(files: Files, paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the errors of unreadable images, and the rotated images.

    The first MOST_DECODED images are decoded into the cache. In a bucket, others are not opened.
    """
    decoded = {*paths[:MOST_DECODED]}

    def open_one(path: str) -> tuple[str, bool]:
        rotated = False
        try:
            if not is_remote(file := files.file(path)):
                with opened(file) as image:
                    rotated = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT) != UPRIGHT
            if path in decoded:
                files(path)
        except UnreadableImageError as reason:
            return str(reason), False
        return "", rotated

    errors, turned = [], []
    with Progress("images", len(paths)) as progress, futures.ThreadPoolExecutor(threads()) as pool:
        for path, (error, rotated) in zip(paths, pool.map(open_one, paths), strict=True):
            errors += [error] if error else []
            turned += [path] if rotated else []
            progress.advance()
    return errors, turned


def _refuse(config: ConfigDict, what: str, names: Sequence[str]) -> str:
    """Return the warning about a cause of wrong accuracies.

    Raises:
        UserError: dataset.strict is on.
    """
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    line = f"{what}: {', '.join(names[:3])}{more}"
    if config.dataset.strict:
        raise UserError(
            f"{line}; accuracies would be wrong, so fix this, or train anyway with "
            "--config.dataset.strict=False."
        )
    return f"{line} (dataset.strict is off)"
