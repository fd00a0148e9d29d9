"""The datasets of the paper in the directory layout that CoOp's DATASETS.md asks for.

Images as distributed and the published `split_zhou_*.json`; where such a file
is absent, a split made from the raw download by the rule that made it. Files of
pickled samples (`split_fewshot/*.pkl`, `preprocessed.pkl`) are never opened:
the sample is drawn again, by the same rule.
"""

import json
import os
import pathlib
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from dpt_jax.data import classnames as names
from dpt_jax.data.catalogue import CATALOGUE, Benchmark
from dpt_jax.data.folder import image_names
from dpt_jax.data.records import Example, Files, Splits
from dpt_jax.errors import UserError
from dpt_jax.runtime.console import say

LAYOUT = (
    "see CoOp's DATASETS.md (github.com/KaiyangZhou/CoOp) for where to get it and how to lay it out"
)
# A split made here must not depend on the run's seed, or the seeds would be tested on different images.
SPLIT_SEED = 1


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


def read_coop(name: str, root: pathlib.Path, skip_missing: bool = False) -> Splits:
    """The dataset `name` below the common root; paths are relative to that root.

    skip_missing: do not ask whether every image that is named is there.
    Raises UserError naming the directory, file or class that is missing.
    """
    benchmark = CATALOGUE[name]
    directory = root / benchmark.directory
    images = directory / benchmark.images
    for folder in (directory, images):
        if not folder.is_dir():
            raise UserError(f"{folder} is not there (dataset.root={root}); {LAYOUT}.")
    lists = _lists(name, benchmark, directory, images)
    if not skip_missing:
        _check_files(images, [*lists.train, *lists.test])
    prefix = images.relative_to(root).as_posix()
    train, val, test = (
        [Example(f"{prefix}/{r.path}", r.label) for r in records] for records in lists
    )
    return Splits(Files(root), _class_names(lists, directory), train, val, test)


def _lists(name: str, benchmark: Benchmark, directory: pathlib.Path, images: pathlib.Path) -> Lists:
    if not benchmark.split:
        return RAW[name](directory, images)
    file = directory / benchmark.split
    if file.is_file():
        return _read_split(file)
    try:
        lists = RAW[name](directory, images)
    except UserError as reason:
        raise UserError(
            f"{file} is not there, and no split can be made without it: {reason}"
        ) from reason
    say(
        f"{file} is not there: going by a split made by the same rule, so not on the published images."
    )
    return lists


def _read_split(file: pathlib.Path) -> Lists:
    try:
        content = json.loads(file.read_text())
        lists = Lists(
            *([Record(str(p), int(c), str(n)) for p, c, n in content[s]] for s in Lists._fields)
        )
    except (ValueError, KeyError, TypeError) as reason:
        raise UserError(
            f"{file} is not a split: it should be JSON with train, val and test lists of [path, label, class name] "
            f"({type(reason).__name__}: {reason}); download it again."
        ) from reason
    for record in [r for records in lists for r in records]:
        path = pathlib.PurePosixPath(record.path)
        if path.is_absolute() or ".." in path.parts:
            raise UserError(
                f"{file} names {record.path!r}, which is outside the dataset; download the split again."
            )
    return lists


def _class_names(lists: Lists, directory: pathlib.Path) -> tuple[str, ...]:
    """Names in label order, as the training images have them, if there are any; each class must have one."""
    named = {r.label: r.classname for records in lists for r in records}
    if not named:
        raise UserError(f"{directory} lists no images at all; download it again.")
    name_of = {r.label: r.classname for r in lists.train or lists.test}
    for label in range(min(0, *named), max(named) + 1):
        if label not in name_of or label < 0:
            name, split = named.get(label, f"number {label}"), "training" if lists.train else "test"
            raise UserError(
                f"{directory}: class {name!r} has no {split} images; repair the split or the folder."
            )
    return tuple(name_of[label].replace("_", " ") for label in range(len(name_of)))


def _check_files(images: pathlib.Path, records: Sequence[Record]) -> None:
    """Raises UserError where a listed image is not there; one directory listing a folder, not one look a file."""
    there: dict[str, set[str]] = {}
    missing = []
    for record in records:
        folder, _, name = record.path.rpartition("/")
        if folder not in there:
            there[folder] = (
                set(os.listdir(images / folder)) if (images / folder).is_dir() else set()
            )
        if name not in there[folder]:
            missing.append(images / record.path)
    if missing:
        others = (
            f", nor are {len(missing) - 1} more images that the dataset's lists name"
            if len(missing) > 1
            else ""
        )
        raise UserError(
            f"{missing[0]} is not there{others}: complete the download, or leave missing images out with "
            "--config.dataset.on_error=skip."
        )


def _lines(file: pathlib.Path) -> list[str]:
    """The lines of a text file that are not empty, stripped."""
    if not file.is_file():
        raise UserError(f"{file} is not there; {LAYOUT}.")
    return [line.strip() for line in file.read_text().splitlines() if line.strip()]


def _fields(file: pathlib.Path, count: int) -> list[list[str]]:
    """Lines of `count` fields between spaces; the last takes the rest of the line."""
    rows = [line.split(maxsplit=count - 1) for line in _lines(file)]
    for number, row in enumerate(rows, 1):
        if len(row) != count:
            raise UserError(
                f"{file}, line {number}: {' '.join(row)!r} should have {count} fields; download it again."
            )
    return rows


def _matlab(file: pathlib.Path, variable: str) -> Any:
    from scipy.io import loadmat

    if not file.is_file():
        raise UserError(f"{file} is not there; {LAYOUT}.")
    try:
        return loadmat(file)[variable][0]
    except (ValueError, KeyError, TypeError, NotImplementedError, OSError) as reason:
        raise UserError(
            f"{file} is not a MATLAB file with {variable!r} ({type(reason).__name__}: {reason}); download it again."
        ) from reason


def _known(label: Any, table: Any, file: pathlib.Path) -> Any:
    """table[label], where `file` is what names the label."""
    try:
        return table[label]
    except (KeyError, IndexError) as reason:
        raise UserError(
            f"{file} names the class {label!r}, which the list of classes does not have."
        ) from reason


def _by_label(records: Iterable[Record]) -> dict[int, list[Record]]:
    groups: dict[int, list[Record]] = {}
    for record in records:
        groups.setdefault(record.label, []).append(record)
    return groups


def split_all(records: Iterable[Record]) -> Lists:
    """Half of each class to train on, a fifth to validate, the rest to test, after one seeded shuffle a class."""
    generator = random.Random(SPLIT_SEED)
    lists = Lists([], [], [])
    for items in _by_label(records).values():
        generator.shuffle(items)
        train = round(len(items) * 0.5)
        val = train + round(len(items) * 0.2)
        if not 0 < train < val < len(items):
            raise UserError(
                f"class {items[0].classname!r} has {len(items)} images, too few to split into train, val and test."
            )
        for own, part in zip(lists, (items[:train], items[train:val], items[val:]), strict=True):
            own.extend(part)
    return lists


def split_train(records: Iterable[Record], test: list[Record]) -> Lists:
    """A fifth of each class to validate, after one seeded shuffle a class; the test list is the data's own."""
    generator = random.Random(SPLIT_SEED)
    lists = Lists([], [], test)
    for items in _by_label(records).values():
        generator.shuffle(items)
        val = round(len(items) * 0.2)
        if not val:
            raise UserError(
                f"class {items[0].classname!r} has {len(items)} images, too few to split into train and val."
            )
        lists.val.extend(items[:val])
        lists.train.extend(items[val:])
    return lists


def _class_folders(
    images: pathlib.Path, folders: Sequence[str], classnames: Sequence[str]
) -> list[Record]:
    return [
        Record(f"{folder}/{file}", label, classname)
        for label, (folder, classname) in enumerate(zip(folders, classnames, strict=True))
        for file in image_names(images / folder)
    ]


def _folders(directory: pathlib.Path, ignored: Iterable[str] = ()) -> list[str]:
    if not directory.is_dir():
        raise UserError(f"{directory} is not there; {LAYOUT}.")
    found = {f.name for f in directory.iterdir() if f.is_dir() and not f.name.startswith(".")}
    if not found:
        raise UserError(f"{directory} has no class folders; {LAYOUT}.")
    return sorted(found.difference(ignored))


def _caltech101(directory: pathlib.Path, images: pathlib.Path) -> Lists:
    folders = _folders(images, ignored=names.CALTECH101_IGNORED)
    return split_all(
        _class_folders(images, folders, [names.CALTECH101_RENAMED.get(f, f) for f in folders])
    )


def _eurosat(directory: pathlib.Path, images: pathlib.Path) -> Lists:
    folders = _folders(images)
    return split_all(_class_folders(images, folders, [names.EUROSAT.get(f, f) for f in folders]))


def _folders_alone(directory: pathlib.Path, images: pathlib.Path) -> Lists:
    folders = _folders(images)
    return split_all(_class_folders(images, folders, folders))


def _oxford_flowers(directory: pathlib.Path, images: pathlib.Path) -> Lists:
    file = directory / "cat_to_name.json"
    try:
        name_of = json.loads("\n".join(_lines(file)))
    except ValueError as reason:
        raise UserError(f"{file} is not valid JSON ({reason}); download it again.") from reason
    labels = _matlab(directory / "imagelabels.mat", "labels")
    return split_all(
        Record(
            f"image_{i:05d}.jpg",
            int(label) - 1,
            _known(str(int(label)), name_of, directory / "imagelabels.mat"),
        )
        for i, label in enumerate(labels, 1)
    )


def _oxford_pets(directory: pathlib.Path, images: pathlib.Path) -> Lists:
    def read(split: str) -> list[Record]:
        # "Abyssinian_100 1 1 1": image, class, species, breed within the species.
        rows = _fields(directory / "annotations" / f"{split}.txt", 4)
        return [
            Record(f"{image}.jpg", int(label) - 1, image.rpartition("_")[0].lower())
            for image, label, _, _ in rows
        ]

    return split_train(read("trainval"), read("test"))


def _stanford_cars(directory: pathlib.Path, images: pathlib.Path) -> Lists:
    classes = [
        names.cars(str(c[0]))
        for c in _matlab(directory / "devkit" / "cars_meta.mat", "class_names")
    ]

    def read(folder: str, file: pathlib.Path) -> list[Record]:
        records = []
        for row in _matlab(file, "annotations"):
            label = int(row["class"].item()) - 1
            records.append(
                Record(f"{folder}/{row['fname'].item()}", label, _known(label, classes, file))
            )
        return records

    trainval = read("cars_train", directory / "devkit" / "cars_train_annos.mat")
    return split_train(trainval, read("cars_test", directory / "cars_test_annos_withlabels.mat"))


def _sun397(directory: pathlib.Path, images: pathlib.Path) -> Lists:
    # Every path and class begins with a slash: "/i/inn/indoor".
    labels = {line[1:]: label for label, line in enumerate(_lines(directory / "ClassName.txt"))}

    def read(file: pathlib.Path) -> list[Record]:
        records = []
        for line in _lines(file):
            path = line[1:]
            folder = path.rpartition("/")[0]
            records.append(Record(path, _known(folder, labels, file), names.sun397(folder)))
        return records

    return split_train(read(directory / "Training_01.txt"), read(directory / "Testing_01.txt"))


def _ucf101(directory: pathlib.Path, images: pathlib.Path) -> Lists:
    lists = directory / "ucfTrainTestlist"
    labels = {action: int(label) - 1 for label, action in _fields(lists / "classInd.txt", 2)}

    def read(file: pathlib.Path) -> list[Record]:
        records = []
        for line in _lines(file):
            # "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1", in the test list without the label.
            action, _, video = line.split()[0].partition("/")
            folder = names.ucf101(action)
            frame = f"{folder}/{video.removesuffix('.avi')}.jpg"
            records.append(Record(frame, _known(action, labels, file), folder))
        return records

    return split_train(read(lists / "trainlist01.txt"), read(lists / "testlist01.txt"))


def _fgvc_aircraft(directory: pathlib.Path, images: pathlib.Path) -> Lists:
    labels = {variant: label for label, variant in enumerate(_lines(directory / "variants.txt"))}

    def read(split: str) -> list[Record]:
        file = directory / f"images_variant_{split}.txt"
        return [
            Record(f"{image}.jpg", _known(name, labels, file), name)
            for image, name in _fields(file, 2)
        ]

    return Lists(read("train"), read("val"), read("test"))


def _imagenet_names(directory: pathlib.Path) -> dict[str, str]:
    """WordNet id -> class name, in the order of the classes."""
    return {folder: name for folder, name in _fields(directory / "classnames.txt", 2)}


def _wordnet_folders(
    directory: pathlib.Path, images: pathlib.Path, folders: Sequence[str]
) -> list[Record]:
    name_of = _imagenet_names(directory)
    return _class_folders(images, folders, [_known(f, name_of, images) for f in folders])


def _imagenet(directory: pathlib.Path, images: pathlib.Path) -> Lists:
    # Tested on the images of `val`, as is usual; without `train` it can still be evaluated on.
    splits = ["train", "val"] if (images / "train").is_dir() else ["val"]
    # One numbering for both, or a folder that one of them lacks would shift the labels.
    folders = sorted({folder for split in splits for folder in _folders(images / split)})

    def read(split: str) -> list[Record]:
        records = _wordnet_folders(directory, images / split, folders)
        return [r._replace(path=f"{split}/{r.path}") for r in records]

    return Lists(read("train") if "train" in splits else [], [], read("val"))


def _wordnet_test(directory: pathlib.Path, images: pathlib.Path) -> Lists:
    """Folders named by WordNet ids, numbered in their order, whichever of the 1,000 there are."""
    return Lists([], [], _wordnet_folders(directory, images, _folders(images)))


def _imagenetv2(directory: pathlib.Path, images: pathlib.Path) -> Lists:
    """Folders named by class numbers, 0 to 999."""
    classes = list(_imagenet_names(directory).values())
    return Lists(
        [], [], _class_folders(images, [str(label) for label in range(len(classes))], classes)
    )


RAW: dict[str, Callable[[pathlib.Path, pathlib.Path], Lists]] = {
    "imagenet": _imagenet,
    "caltech101": _caltech101,
    "oxford_pets": _oxford_pets,
    "stanford_cars": _stanford_cars,
    "oxford_flowers": _oxford_flowers,
    "food101": _folders_alone,
    "fgvc_aircraft": _fgvc_aircraft,
    "sun397": _sun397,
    "dtd": _folders_alone,
    "eurosat": _eurosat,
    "ucf101": _ucf101,
    "imagenetv2": _imagenetv2,
    "imagenet_sketch": _wordnet_test,
    "imagenet_a": _wordnet_test,
    "imagenet_r": _wordnet_test,
}
