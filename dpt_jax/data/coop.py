"""The published datasets in the directory layout of CoOp's DATASETS.md, and lists of samples.

Images are as distributed; `split_zhou_*.json` is used if the data have no split.
"""

import io
import json
import pickle
from collections.abc import Callable, Sequence

from etils import epath

from dpt_jax.data.catalogue import CATALOGUE
from dpt_jax.data.folder import SPLITS, check_files, folders_in, is_image_name, no_images, visible
from dpt_jax.data.records import Dataset, Example, Files
from dpt_jax.errors import UserError
from dpt_jax.io import as_path, reading

LAYOUT = (
    "see CoOp's DATASETS.md (github.com/KaiyangZhou/CoOp) for where to get it and how to lay it out"
)
# Modules with Datum, the class of a sample's records, in CoOp's code and in code derived from it.
RECORD_MODULES = ("dassl.data.datasets.base_dataset", "dassl.data.datasets", "datasets.utils")
# Class names; training, validation and test examples, with paths relative to the images' folder.
Lists = tuple[Sequence[str], list[Example], list[Example], list[Example]]


def read_coop(name: str, root: epath.PathLike, skip_missing: bool = False) -> Dataset:
    """Return a dataset of the catalogue; its paths are relative to the common root.

    With `skip_missing`, listed images may be missing.
    """
    benchmark, root = CATALOGUE[name], as_path(root)
    directory = root / benchmark.directory
    images = directory / benchmark.images
    for folder in (directory, images):
        if not folder.is_dir():
            raise UserError(f"{folder} does not exist (dataset.root={root}); {LAYOUT}.")
    if benchmark.split:
        names, *lists = _read_split(directory / f"split_zhou_{benchmark.split}.json")
    else:
        names, *lists = WITHOUT_SPLIT_FILE.get(name, _read_wordnet_test)(directory, images)
    if not skip_missing:
        paths = [example.path for example in (*lists[0], *lists[2])]
        check_files(Files(images), paths, str(directory))
    prefix = images.relative_to(root).as_posix()
    train, val, test = ([Example(f"{prefix}/{e.path}", e.label) for e in own] for own in lists)
    return Dataset(Files(root, upright=False), tuple(names), train, val, test)


def _read_split(file: epath.Path) -> Lists:
    """Read the published split, with the class names of the training images."""
    if not file.is_file():
        raise UserError(f"{file}, the published split, does not exist; {LAYOUT}.")
    with reading(file, "JSON with train, val and test lists of [path, label, class name]"):
        content = json.loads(file.read_text(encoding="utf-8-sig"))
        train, val, test = (
            [Example(path, label) for path, label, _ in content[split]] for split in SPLITS
        )
        name_of = {label: name.replace("_", " ") for _, label, name in content["train"]}
        labels = {example.label for example in (*train, *val, *test)}
        named = {label for label, name in name_of.items() if name.strip()}
        if without := labels.union(range(max(labels) + 1)) - named:
            raise ValueError(f"class number {min(without)} has no training images or no name")
        return [name_of[label] for label in range(len(name_of))], train, val, test


def _read_fgvc_aircraft(directory: epath.Path, images: epath.Path) -> Lists:
    """Read lines such as "1025794 707-320" of the dataset's own three splits."""
    names = _lines(directory / "variants.txt")
    label_of = {name: label for label, name in enumerate(names)}

    def examples(split: str) -> list[Example]:
        file = directory / f"images_variant_{split}.txt"
        with reading(file, "a list of images and classes"):
            pairs = [line.split(maxsplit=1) for line in _lines(file)]
            return [Example(f"{image}.jpg", label_of[name]) for image, name in pairs]

    return names, examples("train"), examples("val"), examples("test")


def _read_imagenet(directory: epath.Path, images: epath.Path) -> Lists:
    """Use the images of `val` as test images, as usual; `train` is only needed for training."""
    splits = ["train", "val"] if (images / "train").is_dir() else ["val"]
    # One numbering for both, or a folder that one of them lacks would shift the labels.
    folders = sorted({folder for split in splits for folder in _folder_names(images / split)})
    train = _in_folders(images, folders, "train/") if "train" in splits else []
    return _names_of(directory, folders), train, [], _in_folders(images, folders, "val/")


def _read_imagenetv2(directory: epath.Path, images: epath.Path) -> Lists:
    """Read folders named by class numbers, 0 to 999."""
    names = list(_name_by_folder(directory).values())
    return names, [], [], _in_folders(images, [str(label) for label in range(len(names))])


def _read_wordnet_test(directory: epath.Path, images: epath.Path) -> Lists:
    """Read folders named by WordNet ids, numbered in their order, however many there are."""
    folders = _folder_names(images)
    return _names_of(directory, folders), [], [], _in_folders(images, folders)


WITHOUT_SPLIT_FILE: dict[str, Callable[[epath.Path, epath.Path], Lists]] = {
    "fgvc_aircraft": _read_fgvc_aircraft,
    "imagenet": _read_imagenet,
    "imagenetv2": _read_imagenetv2,
}


def _name_by_folder(directory: epath.Path) -> dict[str, str]:
    """Return {WordNet id: class name} of the directory's own list, in the order of the classes."""
    file = directory / "classnames.txt"
    with reading(file, "a list of WordNet ids and class names"):
        pairs = [line.split(maxsplit=1) for line in _lines(file)]
        return {folder: name for folder, name in pairs}


def _names_of(directory: epath.Path, folders: Sequence[str]) -> list[str]:
    """Return the class names of folders that are named by WordNet ids."""
    name_of = _name_by_folder(directory)
    if unknown := [folder for folder in folders if folder not in name_of]:
        raise UserError(f"{directory / 'classnames.txt'} has no name for folder {unknown[0]}.")
    return [name_of[folder] for folder in folders]


def _folder_names(directory: epath.Path) -> list[str]:
    if not (found := folders_in(directory)):
        raise UserError(f"{directory} has no class folders.")
    return found


def _in_folders(images: epath.Path, folders: Sequence[str], split: str = "") -> list[Example]:
    """Return the images of class folders, labelled in the order of the folders."""
    examples = []
    for label, name in enumerate(folders):
        folder = f"{split}{name}"
        names = [x for x, is_folder in visible(images / folder) if not is_folder]
        own = [Example(f"{folder}/{x}", label) for x in names if is_image_name(x)]
        if not own:
            raise no_images(images / folder)
        examples += own
    return examples


def _lines(file: epath.Path) -> list[str]:
    """Return the stripped, non-blank lines of a text file."""
    with reading(file, "a list of images or classes"):
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    return [line.strip() for line in lines if line.strip()]


def listed_images(file: epath.Path) -> list[tuple[str, int | None]]:
    """Return path and label of the images that a file lists, without label in a train_files.txt."""
    content = file.read_bytes()
    if file.suffix == ".txt":
        # As the run wrote them: names may hold any bytes, and begin or end with spaces.
        lines = content.decode(errors="surrogateescape").split("\n")
        return [(line.removesuffix("\r"), None) for line in lines if line.strip()]
    if file.suffix == ".jsonl":
        lines = content.decode("utf-8-sig").split("\n")
        records = [json.loads(line) for line in lines if line.strip()]
    else:
        records = [vars(record) for record in _Unpickler(io.BytesIO(content)).load()["train"]]
    return [(str(record["_impath"]), int(record["_label"])) for record in records]


class _Record:
    """Stands for the published class of a record, with its attributes."""


class _Unpickler(pickle.Unpickler):
    """Unpickles records of the published class, and calls nothing that a file names."""

    def find_class(self, module: str, name: str) -> type[_Record]:
        if module not in RECORD_MODULES or name != "Datum":
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not run")
        return _Record
