"""Checks of the images before training: are there enough, and what would distort accuracies."""

import collections
from collections.abc import Sequence
from concurrent import futures

from ml_collections import ConfigDict
from PIL import ExifTags
from tabulate import tabulate

from dpt_jax.data.catalogue import EMBEDDED
from dpt_jax.data.loader import threads
from dpt_jax.data.records import Dataset, Files, UnreadableImageError, by_label, contents, opened
from dpt_jax.errors import UserError
from dpt_jax.io import is_remote
from dpt_jax.logging import Progress
from dpt_jax.methods import METHODS

UPRIGHT = 1  # the EXIF orientation of an image that is not rotated
MOST_ROWS = 20  # of the table of classes
MOST_DECODED = 2000  # images, those to train on first; of the rest, only headers are read


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
                f"{name} has no training images of class {classname!r}: add some, or leave it out."
            )
        if images[label] == 1 and config.classifier.select == "support":
            raise UserError(
                f"classifier.select=support needs two training images per class, but {classname!r} "
                "has one: add images, or use classifier.select=none."
            )


def look(dataset: Dataset, config: ConfigDict) -> str:
    """Return a table of the classes of a dataset with its sample, and notes about the images.

    Raise UserError about what would make the accuracies of the user's own images wrong. Published
    and bundled ones are only counted, unless dataset.on_error is skip.
    """
    lines, is_users = [_table(dataset)], is_own(config.dataset)
    if is_users or config.dataset.on_error == "skip":
        lines += _open_all(dataset, config.dataset.on_error == "skip")
    if is_users:
        tested = {example.label for example in dataset.test}
        untested = [name for label, name in enumerate(dataset.classnames) if label not in tested]
        if tested and untested:  # a dataset may have no test images at all
            lines.append(_refuse(config, "classes without test images", untested))
    if is_users and type(dataset.read) is Files:
        learned, tested_on = [*dataset.train, *dataset.val], dataset.test
        found = contents(dataset.read.root, [example.path for example in (*learned, *tested_on)])
        path_of = {content: e.path for content, e in zip(found, learned, strict=False)}
        pairs = zip(tested_on, found[len(learned) :], strict=True)
        if same := [f"{e.path} is {path_of[x]}" for e, x in pairs if x in path_of]:
            lines.append(_refuse(config, "test images that are also in train or val", same))
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
    rows: list[list[str | int]] = [
        [name, *(count[label] for count in counts.values())]
        for label, name in enumerate(dataset.classnames)
    ]
    if (more := len(rows) - MOST_ROWS) > 0:
        rows = sorted(rows, key=lambda row: sum(map(int, row[1:])))[:MOST_ROWS]
        rows.append([f"… {more} more classes"])
    rows.append(["all", *(count.total() for count in counts.values())])
    return tabulate(rows, ["class", *counts], disable_numparse=[0])


def _open_all(dataset: Dataset, skip: bool) -> list[str]:
    """Return lines about rotated and unreadable images.  Raise UserError about these unless `skip`.

    The first MOST_DECODED images are decoded into the cache. Of others, only headers are read; in
    a bucket, nothing.
    """
    examples = (*dataset.train, *dataset.val, *dataset.test)
    paths, files = list(dict.fromkeys(example.path for example in examples)), dataset.read
    decoded = {*paths[:MOST_DECODED]}

    def open_one(path: str) -> tuple[str, bool]:
        """Return why an image cannot be read, or "", and whether its EXIF tag rotates it."""
        rotated = False
        try:
            if type(files) is Files and not is_remote(file := files.file(path)):
                with opened(file) as image:
                    orientation = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
                    rotated = files.upright and orientation != UPRIGHT
            if path in decoded:
                files(path)
        except UnreadableImageError as reason:
            return str(reason).removesuffix("."), False
        return "", rotated

    errors, rotated = {}, []
    with Progress("images", len(paths)) as progress, futures.ThreadPoolExecutor(threads()) as pool:
        for path, (error, is_rotated) in zip(paths, pool.map(open_one, paths), strict=True):
            if error:
                errors[path] = error
            if is_rotated:
                rotated.append(path)
            progress.advance()
    lines = []
    if rotated:
        lines.append(
            f"images rotated by their EXIF orientation: {len(rotated)}, such as {rotated[0]}"
        )
    if not errors:
        return lines
    count = f"{len(errors)}, such as {next(iter(errors.values()))}"
    if not skip:
        raise UserError(
            f"unreadable images: {count}: repair or remove what is broken, or leave such images "
            "out with --config.dataset.on_error=skip."
        )
    for own in (*by_label(dataset.train), dataset.test):
        if own and all(example.path in errors for example in own):
            name = dataset.classnames[own[0].label]
            what = "test images" if own is dataset.test else f"training images of class {name!r}"
            raise UserError(f"none of the {what} can be read, such as {own[0].path}: repair them.")
    return [*lines, f"unreadable images, which are left out: {count}"]


def _refuse(config: ConfigDict, what: str, names: Sequence[str]) -> str:
    """Return the warning about a cause of wrong accuracies, or raise it if dataset.strict is on."""
    line = f"{what}: {len(names)}, such as {', '.join(names[:3])}"
    if config.dataset.strict:
        raise UserError(
            f"{line}; accuracies would be wrong, so fix this, or train anyway with "
            "--config.dataset.strict=False."
        )
    return f"{line} (dataset.strict is off)"
