"""Datasets from any source, with their few-shot sample, and the checks before training on them.

The sample is drawn as published, or listed by a file.
"""

import collections
import hashlib
import os
import random
from collections.abc import Iterable, Sequence
from concurrent import futures

from etils import epath
from ml_collections import ConfigDict
from PIL import ExifTags
from tabulate import tabulate

from dpt_jax.data import records
from dpt_jax.data.catalogue import CATALOGUE, EMBEDDED, descriptions_of
from dpt_jax.data.coop import listed_images, read_coop
from dpt_jax.data.folder import read_folder
from dpt_jax.data.loader import threads
from dpt_jax.data.records import Dataset, Example, Files, by_label
from dpt_jax.data.tfds import read_tfds
from dpt_jax.errors import UserError
from dpt_jax.io import ASSETS, as_path, is_remote, listed_once, reading
from dpt_jax.logging import Progress, say_once
from dpt_jax.methods import METHODS

VALIDATION_SHOTS = 4
UPRIGHT = 1  # the EXIF orientation of an image that is not rotated
MOST_ROWS = 20  # of the table of classes
MOST_DECODED = 2000  # images, those to train on first; of the rest, only headers are read


def load_dataset(config: ConfigDict, seed: int, whole: Dataset | None = None) -> Dataset:
    """Return the dataset that config.dataset names, with its few-shot sample.

    The seed draws the sample, unless dataset.sample names a file that lists it. `whole` is the
    whole dataset, if it is loaded already; all its validation images are used.
    """
    given, whole = whole, whole or read_splits(config)
    classes = len(whole.classnames)
    middle = (classes + 1) // 2
    halves = {"all": range(classes), "base": range(middle), "new": range(middle, classes)}
    labels = halves[config.classes]
    classnames = whole.classnames[labels.start : labels.stop]
    if config.descriptions:
        descriptions_of(config.descriptions, classnames)
    # The shots are drawn before the classes are split, so that both halves share one sample.
    train, val = _sample(config, whole, seed)
    train, val, test = (
        [Example(e.path, e.label - labels.start) for e in part if e.label in labels]
        for part in (train, given.val if given else val, whole.test)
    )
    digest = hashlib.sha256("\0".join(whole.classnames).encode(errors="surrogateescape"))
    for split in (whole.train, whole.val, whole.test):
        digest.update(digest_of_examples(split).encode())
    return Dataset(whole.read, classnames, train, val, test, digest.hexdigest(), whole.split)


def read_splits(config: ConfigDict) -> Dataset:
    """Return the whole dataset that config.dataset names, from its source."""
    if config.source != "folder" and config.name not in CATALOGUE:
        raise UserError(
            f"dataset.source={config.source} has {', '.join(CATALOGUE)}, not {config.name!r}: "
            "name one of them in --config=METHOD:NAME, or use dataset.source=folder."
        )
    check_root(config)
    if config.source == "tfds":
        return read_tfds(config.name, config.root)
    root = as_path(config.root) if config.root else ASSETS / config.name
    with listed_once(root / CATALOGUE[config.name].directory if config.source == "coop" else root):
        if config.source == "coop":
            return read_coop(config.name, root, skip_missing=config.on_error == "skip")
        return read_folder(root, config.split, config.test_fraction, config.on_error == "skip")


def check_root(config: ConfigDict) -> None:
    """Raise UserError if dataset.root is missing."""
    if config.name not in EMBEDDED and not config.root and config.source != "tfds":
        own = CATALOGUE[config.name].directory if config.source == "coop" else "your class folders"
        raise UserError(
            "dataset.root is not set: give --config.dataset.root=DIR, the folder that holds "
            f"{own}, see docs/datasets.md."
        )


def digest_of_examples(examples: Sequence[Example]) -> str:
    """Return the SHA-256 of a list of images: their paths and labels, in order."""
    text = "\n".join(f"{example.label} {example.path}" for example in examples)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def digest_of_files(dataset: Dataset) -> str:
    """Return the SHA-256 of the sizes of the test images, "" if they are not local files."""
    if not isinstance(dataset.read, Files) or is_remote(dataset.read.root):
        return ""
    files = [dataset.read.file(example.path) for example in dataset.test]
    sizes = [os.stat(file).st_size if file.exists() else None for file in files]
    return hashlib.sha256(repr(sizes).encode()).hexdigest()


def _sample(config: ConfigDict, whole: Dataset, seed: int) -> tuple[list[Example], list[Example]]:
    """Return the images to train on and to validate on, of all classes."""
    train, val = few_shot(whole.train, whole.val, config.shots, seed, config.natural)
    if config.sample and whole.train:  # a dataset that is only tested on has no sample
        return read_sample(as_path(config.sample), whole, config.shots), val
    if config.shots > (most := _most_per_class(whole.train)) > 0:
        say_once(
            f"dataset.shots is {config.shots}, but no class has more than {most} training images: "
            "all are used."
        )
    return train, val


def _most_per_class(examples: Iterable[Example]) -> int:
    return max(collections.Counter(example.label for example in examples).values(), default=0)


def few_shot(
    train: Sequence[Example], val: Sequence[Example], shots: int, seed: int, natural: bool = False
) -> tuple[list[Example], list[Example]]:
    """Return `shots` examples per class of train and min(shots, 4) of val, as CoOp draws them.

    One generator draws for train and then for val, class by class in the order in which the
    classes first appear. A class with fewer examples is taken whole. shots = -1 takes everything.
    If `natural`, one example per class of train is drawn, and the rest of shots · C at random.
    """
    if shots < 0:
        return list(train), list(val)
    generator = random.Random(seed)

    def draw(examples: Sequence[Example], shots: int) -> list[Example]:
        drawn = []
        for own in by_label(examples):
            drawn += generator.sample(own, shots) if len(own) >= shots else own
        return drawn

    drawn = draw(train, 1 if natural else shots)
    if natural:
        others = sorted(set(train) - {*drawn})
        drawn += generator.sample(others, min((shots - 1) * len(drawn), len(others)))
    return drawn, draw(val, min(shots, VALIDATION_SHOTS))


def read_sample(file: epath.Path, whole: Dataset, shots: int) -> list[Example]:
    """Return the training images that a file lists, in its order, repeated if it repeats them.

    The file is a run's train_files.txt, a .jsonl with one record per line, or a .pkl of
    CoOp's code, read without running any code. Labels and number of shots must match.
    """
    with reading(file, "a train_files.txt, a .jsonl or a .pkl of CoOp's layout (dataset.sample)"):
        listed = listed_images(file)
        if not listed:
            raise ValueError("it lists no images")
    label_of = {example.path: example.label for example in whole.train}
    sample = []
    for path, label in listed:
        # Paths may begin with another machine's folder: /their/data/imagenet/images/train/…
        parts = path.replace("\\", "/").split("/") if path not in label_of else [path]
        ends = ("/".join(parts[i:]) for i in range(len(parts)))
        found = next((end for end in ends if end in label_of), None)
        if found is None or label not in (None, label_of[found]):
            of = "" if label is None else f" of label {label}"
            raise UserError(
                f"dataset.sample: {file} lists {path!r}, which is not a training image{of} here."
            )
        sample.append(Example(found, label_of[found]))
    most = _most_per_class(sample)  # results are labelled by dataset.shots
    if shots >= 0 and not min(shots, _most_per_class(whole.train)) <= most <= shots:
        raise UserError(
            f"dataset.sample: {file} has up to {most} images per class, but dataset.shots is "
            f"{shots}: give --config.dataset.shots={most}."
        )
    return sample


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
        paths = [example.path for example in (*learned, *tested_on)]
        found = records.contents(dataset.read.root, paths)
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


def check_images(dataset: Dataset, config: ConfigDict) -> None:
    """Check the images of a run, and print the table of `look` once if they are the user's own."""
    table = look(dataset, config)
    if is_own(config.dataset):
        say_once(table)


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
                with records.opened(file) as image:
                    orientation = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
                    rotated = files.upright and orientation != UPRIGHT
            if path in decoded:
                files(path)
        except records.UnreadableImageError as reason:
            return str(reason).removesuffix("."), False
        return "", rotated

    with Progress("images", len(paths)) as progress, futures.ThreadPoolExecutor(threads()) as pool:
        found = [*zip(paths, progress.track(pool.map(open_one, paths)), strict=True)]
    errors = {path: error for path, (error, _) in found if error}
    rotated = [path for path, (_, is_rotated) in found if is_rotated]
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
