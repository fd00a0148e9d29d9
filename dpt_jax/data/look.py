"""Checks of the images before training: are there enough, and what would distort accuracies."""

import collections
from collections.abc import Sequence
from concurrent import futures

from ml_collections import ConfigDict
from PIL import ExifTags
from tabulate import tabulate

from dpt_jax.data.catalogue import EMBEDDED
from dpt_jax.data.loader import threads
from dpt_jax.data.records import (
    Dataset,
    Example,
    Files,
    UnreadableImageError,
    by_label,
    contents,
    opened,
)
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


def look(dataset: Dataset, config: ConfigDict) -> str:
    """Return a table of the classes of a dataset with its sample, and notes about the images.

    The user's own images are checked. Published and bundled ones are only counted.

    Raises:
        UserError: an image cannot be read (with dataset.on_error=skip: none of a class can), or
            (unless dataset.strict is off) a class has no test images, or a test file is also in
            training or validation.
    """
    lines = [_table(dataset)]
    if is_own(config.dataset):
        tested = {example.label for example in dataset.test}
        untested = [name for label, name in enumerate(dataset.classnames) if label not in tested]
        if tested and untested:  # a dataset may have no test images at all
            lines.append(_refuse(config, "classes without test images", untested))
        if type(dataset.read) is Files:  # none is in memory
            lines += _look_at_files(dataset, dataset.read, config)
    if config.dataset.on_error == "skip":
        check_readable(dataset)
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
    counts = {
        split: collections.Counter(example.label for example in examples)
        for split, examples in splits.items()
        if examples
    }
    labels = list(range(len(dataset.classnames)))
    if len(labels) > MOST_ROWS:
        labels.sort(key=lambda label: sum(count[label] for count in counts.values()))
    rows = [
        [dataset.classnames[label], *(count[label] for count in counts.values())]
        for label in labels[:MOST_ROWS]
    ]
    if len(labels) > MOST_ROWS:
        rows.append([f"… {len(labels) - MOST_ROWS} more classes"])
    rows.append(["all", *(count.total() for count in counts.values())])
    return tabulate(rows, ["class", *counts], disable_numparse=[0])


def _look_at_files(dataset: Dataset, files: Files, config: ConfigDict) -> list[str]:
    """Return lines about unreadable, rotated and repeated files.

    The first MOST_DECODED images are decoded into the cache. In a bucket, others are not opened.
    """
    learned = list(dict.fromkeys(e.path for e in (*dataset.train, *dataset.val)))
    tested = list(dict.fromkeys(e.path for e in dataset.test))
    paths = [*learned, *tested]
    decoded = {*paths[:MOST_DECODED]}
    errors, rotated = [], []

    def open_one(path: str) -> None:
        try:
            if not is_remote(file := files.file(path)):
                with opened(file) as image:
                    if image.getexif().get(ExifTags.Base.Orientation, UPRIGHT) != UPRIGHT:
                        rotated.append(path)
            if path in decoded:
                files(path)
        except UnreadableImageError as reason:
            errors.append(str(reason).removesuffix("."))

    with Progress("images", len(paths)) as progress, futures.ThreadPoolExecutor(threads()) as pool:
        for _ in pool.map(open_one, paths):
            progress.advance()
    lines = []
    if errors:
        if config.dataset.on_error != "skip":
            raise UserError(
                f"{len(errors)} images cannot be read: {min(errors)}: repair or remove what is "
                "broken, or leave such images out with --config.dataset.on_error=skip."
            )
        lines.append(f"unreadable images, which are left out: {len(errors)}, such as {min(errors)}")
    if rotated:
        more = f"{len(rotated)}, such as {min(rotated)}"
        lines.append(f"images rotated by their EXIF orientation: {more}")
    found = contents(files.root, paths)
    own = dict(zip(found, learned, strict=False))
    pairs = zip(tested, found[len(learned) :], strict=True)
    if same := [f"{path} is {own[content]}" for path, content in pairs if content in own]:
        lines.append(_refuse(config, "test images that are also in train or val", same))
    return lines


def check_readable(dataset: Dataset) -> None:
    """Raise UserError if no training image of a class, or no test image, can be read.

    Reads one image of each class and one test image, and more only if those are unreadable.
    """

    def one_is_readable(examples: list[Example]) -> bool:
        for example in examples:
            try:
                dataset.read(example.path)
            except UnreadableImageError:
                continue
            return True
        return not examples

    groups = [*by_label(dataset.train), dataset.test]
    with futures.ThreadPoolExecutor(threads()) as pool:
        for own, readable in zip(groups, pool.map(one_is_readable, groups), strict=True):
            if not readable:
                what = "test images" if own is dataset.test else "training images of class "
                what += "" if own is dataset.test else repr(dataset.classnames[own[0].label])
                raise UserError(
                    f"none of the {len(own)} {what} can be read, such as {own[0].path}: repair "
                    "them."
                )


def _refuse(config: ConfigDict, what: str, names: Sequence[str]) -> str:
    """Return the warning about a cause of wrong accuracies, or raise it if dataset.strict is on."""
    line = f"{what}: {len(names)}, such as {', '.join(names[:3])}"
    if config.dataset.strict:
        raise UserError(
            f"{line}; accuracies would be wrong, so fix this, or train anyway with "
            "--config.dataset.strict=False."
        )
    return f"{line} (dataset.strict is off)"
