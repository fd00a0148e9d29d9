"""How a published dataset is described, what made its splits, and readers of its lists."""

import io
import random
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from etils import epath

from dpt_jax.data.folder import image_names, visible
from dpt_jax.errors import UserError
from dpt_jax.io import reading

# A split made here must not depend on the run's seed, or each seed had other test images.
SPLIT_SEED = 1

Setting = str | int | float | bool
T = TypeVar("T")


class Record(NamedTuple):
    """An image relative to the dataset's image folder, its label and the name of its class."""

    path: str
    label: int
    classname: str


class Lists(NamedTuple):
    """The three lists that a dataset comes as."""

    train: list[Record]
    val: list[Record]
    test: list[Record]


# From the dataset's directory and the folder of its images to the lists of its raw download.
RawReader = Callable[[epath.Path, epath.Path], Lists]


def as_they_are(labels: Sequence[str]) -> dict[str, str]:
    """Return TFDS's labels as class names, with spaces for underscores."""
    return {label: label.replace("_", " ") for label in labels}


class TfdsUse(NamedTuple):
    """How a dataset of tensorflow-datasets is used.

    Attributes:
        builder: its name and config.
        train, val, test: which of its splits serve as what, "+" joining several and "" for none.
            Without test, train is split by the rule that made the published splits.
        classnames: from TFDS's labels to {label: published class name} in the published order,
            without the classes that are left out.
        subset: some labels have no images.
    """

    builder: str
    train: str = ""
    val: str = ""
    test: str = ""
    classnames: Callable[[Sequence[str]], dict[str, str]] = as_they_are
    subset: bool = False


class Benchmark(NamedTuple):
    """What is particular to one published dataset.

    Attributes:
        template: the hand-written text of a class, for zero-shot CLIP and the frozen texts.
        directory: where CoOp's DATASETS.md puts it below the common root.
        images: the folder that image paths are relative to, below the directory.
        read_raw: reads the lists of its raw download.
        split: the file of its published split, or "" if the data come with one.
        tfds: its use of TFDS, or None if TFDS does not have it.
        trainable: False for the shifted ImageNets, which are only tested on.
        differs: settings by key that the published scripts set otherwise than the defaults.
    """

    name: str
    template: str
    directory: str
    images: str
    read_raw: RawReader
    split: str = ""
    tfds: TfdsUse | None = None
    trainable: bool = True
    differs: Mapping[str, Setting] = {}

    @property
    def settings(self) -> dict[str, Setting]:
        """The settings by key that are not the defaults."""
        return {"dataset.source": "coop", "dataset.template": self.template, **self.differs}


def split_all(records: Iterable[Record]) -> Lists:
    """Return half of each class to train on, a fifth to validate, the rest to test."""
    lists = Lists([], [], [])
    for items in _shuffled_classes(records):
        train = round(len(items) * 0.5)
        val = train + round(len(items) * 0.2)
        for own, part in zip(lists, (items[:train], items[train:val], items[val:]), strict=True):
            _extend(own, part, items)
    return lists


def split_train(records: Iterable[Record], test: list[Record]) -> Lists:
    """Return a fifth of each class to validate, the rest to train on, and the data's own test."""
    lists = Lists([], [], test)
    for items in _shuffled_classes(records):
        val = round(len(items) * 0.2)
        _extend(lists.val, items[:val], items)
        _extend(lists.train, items[val:], items)
    return lists


def _shuffled_classes(records: Iterable[Record]) -> Iterable[list[Record]]:
    """Return the records of each class, shuffled with a fixed seed as for the published splits."""
    generator = random.Random(SPLIT_SEED)
    groups: dict[int, list[Record]] = {}
    for record in records:
        groups.setdefault(record.label, []).append(record)
    for items in groups.values():
        generator.shuffle(items)
    return groups.values()


def _extend(own: list[Record], part: list[Record], items: list[Record]) -> None:
    if not part:
        raise UserError(f"class {items[0].classname!r} has {len(items)} images, too few to split.")
    own.extend(part)


def class_folders(
    images: epath.Path, folders: Iterable[str], classnames: Iterable[str]
) -> list[Record]:
    """Return the images of class folders, labelled in the order of the folders."""
    return [
        Record(f"{folder}/{file}", label, classname)
        for label, (folder, classname) in enumerate(zip(folders, classnames, strict=True))
        for file in image_names(images / folder)
    ]


def folder_names(directory: epath.Path) -> list[str]:
    """Return the names of the folders in a directory, sorted."""
    found = [name for name, is_folder in visible(directory) if is_folder]
    if not found:
        raise UserError(f"{directory} has no class folders.")
    return found


def text(file: epath.Path) -> str:
    """Return the text of a UTF-8 file, with or without a byte-order mark."""
    return file.read_bytes().decode("utf-8-sig")


def read_lines(file: epath.Path, parse: Callable[[str], T]) -> list[T]:
    """Return what `parse` returns for each line of a text file that is not blank, stripped."""
    with reading(file, "a list of images or classes"):
        return [parse(line.strip()) for line in text(file).splitlines() if line.strip()]


def read_matlab(file: epath.Path, variable: str, parse: Callable[[Any], T]) -> list[T]:
    """Return what `parse` returns for each cell of a variable's first row in a MATLAB file."""
    from scipy.io import loadmat  # slow to import

    with reading(file, "a MATLAB file"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of duplicate names in a damaged file
        return [parse(cell) for cell in loadmat(io.BytesIO(file.read_bytes()))[variable][0]]
