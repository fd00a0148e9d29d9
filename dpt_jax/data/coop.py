"""The published datasets in the directory layout of CoOp's DATASETS.md.

Images are as distributed; `split_zhou_*.json` is used if the data have no split.
"""

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from etils import epath

from dpt_jax.data.catalogue import CATALOGUE
from dpt_jax.data.folder import SPLITS, check_files, is_image_name, no_images, visible
from dpt_jax.data.records import Dataset, Example, Files
from dpt_jax.errors import UserError
from dpt_jax.io import as_path, reading

LAYOUT = (
    "see CoOp's DATASETS.md (github.com/KaiyangZhou/CoOp) for where to get it and how to lay it out"
)
SPLIT = "JSON with train, val and test lists of [path, label, class name]"
T = TypeVar("T")


class Lists(NamedTuple):
    """Class names, and examples whose paths are relative to the folder of the images."""

    classnames: Sequence[str]
    train: list[Example]
    val: list[Example]
    test: list[Example]


def read_coop(name: str, root: epath.PathLike, skip_missing: bool = False) -> Dataset:
    """Return a dataset below the common root. Its paths are relative to that root.

    Args:
        name: name of the dataset in the catalogue.
        root: the folder that has the dataset's own directory.
        skip_missing: do not check whether every listed image exists.

    Raises:
        UserError: a directory, file, image or class is missing. The message names it.
    """
    benchmark, root = CATALOGUE[name], as_path(root)
    directory = root / benchmark.directory
    images = directory / benchmark.images
    for folder in (directory, images):
        if not folder.is_dir():
            raise UserError(f"{folder} does not exist (dataset.root={root}); {LAYOUT}.")
    if benchmark.split:
        lists = _read_split(directory / benchmark.split)
    else:
        lists = WITHOUT_SPLIT_FILE.get(name, _read_wordnet_test)(directory, images)
    if not skip_missing:
        paths = [example.path for example in (*lists.train, *lists.test)]
        check_files(Files(images), paths, str(directory))
    prefix = images.relative_to(root).as_posix()
    train, val, test = (
        [Example(f"{prefix}/{e.path}", e.label) for e in examples] for examples in lists[1:]
    )
    return Dataset(Files(root, upright=False), tuple(lists.classnames), train, val, test)


def _read_split(file: epath.Path) -> Lists:
    """Read the published split, with the class names of the training images."""
    if not file.is_file():
        raise UserError(f"{file}, the published split, does not exist; {LAYOUT}.")
    with reading(file, SPLIT):
        content = json.loads(file.read_text(encoding="utf-8-sig"))
        examples: dict[str, list[Example]] = {}
        names: dict[int, str] = {}
        for split in SPLITS:
            for path, label, name in content[split]:
                wrong_label = type(label) is not int or label < 0
                if not isinstance(path, str) or wrong_label or not name.strip(" _"):
                    raise ValueError(f"[{path!r}, {label!r}, {name!r}] is not such an entry")
                if split == "train":
                    names[label] = name.replace("_", " ")
            examples[split] = [Example(path, label) for path, label, _ in content[split]]
        labels = {example.label for own in examples.values() for example in own}
        if without := labels.union(range(max(labels) + 1)) - {*names}:
            raise ValueError(f"class number {min(without)} has no training images")
    return Lists([names[label] for label in range(len(names))], *examples.values())


def _read_fgvc_aircraft(directory: epath.Path, images: epath.Path) -> Lists:
    """Read lines such as "1025794 707-320" of the dataset's own three splits."""
    names = _lines(directory / "variants.txt", str)
    label_of = {name: label for label, name in enumerate(names)}

    def example(line: str) -> Example:
        image, name = line.split(maxsplit=1)
        return Example(f"{image}.jpg", label_of[name])

    return Lists(names, *(_lines(directory / f"images_variant_{s}.txt", example) for s in SPLITS))


def _read_imagenet(directory: epath.Path, images: epath.Path) -> Lists:
    """Use the images of `val` as test images, as usual; `train` is only needed for training."""
    splits = ["train", "val"] if (images / "train").is_dir() else ["val"]
    # One numbering for both, or a folder that one of them lacks would shift the labels.
    folders = sorted({folder for split in splits for folder in _folder_names(images / split)})
    names = _names_of(directory, folders)
    train = _in_folders(images, folders, "train/") if "train" in splits else []
    return Lists(names, train, [], _in_folders(images, folders, "val/"))


def _read_imagenetv2(directory: epath.Path, images: epath.Path) -> Lists:
    """Read folders named by class numbers, 0 to 999."""
    names = list(_name_by_folder(directory).values())
    return Lists(names, [], [], _in_folders(images, [str(label) for label in range(len(names))]))


def _read_wordnet_test(directory: epath.Path, images: epath.Path) -> Lists:
    """Read folders named by WordNet ids, numbered in their order, however many there are."""
    folders = _folder_names(images)
    return Lists(_names_of(directory, folders), [], [], _in_folders(images, folders))


WITHOUT_SPLIT_FILE: dict[str, Callable[[epath.Path, epath.Path], Lists]] = {
    "fgvc_aircraft": _read_fgvc_aircraft,
    "imagenet": _read_imagenet,
    "imagenetv2": _read_imagenetv2,
}


def _name_by_folder(directory: epath.Path) -> dict[str, str]:
    """Return {WordNet id: class name} of the directory's own list, in the order of the classes."""

    def pair(line: str) -> tuple[str, str]:
        folder, name = line.split(maxsplit=1)
        return folder, name

    return dict(_lines(directory / "classnames.txt", pair))


def _names_of(directory: epath.Path, folders: Sequence[str]) -> list[str]:
    """Return the class names of folders that are named by WordNet ids."""
    name_of = _name_by_folder(directory)
    if unknown := [folder for folder in folders if folder not in name_of]:
        raise UserError(f"{directory / 'classnames.txt'} has no name for folder {unknown[0]}.")
    return [name_of[folder] for folder in folders]


def _folder_names(directory: epath.Path) -> list[str]:
    found = [name for name, is_folder in visible(directory) if is_folder]
    if not found:
        raise UserError(f"{directory} has no class folders.")
    return found


def _in_folders(images: epath.Path, folders: Sequence[str], split: str = "") -> list[Example]:
    """Return the images of class folders, labelled in the order of the folders."""
    examples = []
    for label, folder in enumerate(folders):
        found = visible(images / f"{split}{folder}")
        names = [name for name, is_folder in found if not is_folder]
        own = [Example(f"{split}{folder}/{n}", label) for n in names if is_image_name(n)]
        if not own:
            raise no_images(images / f"{split}{folder}")
        examples += own
    return examples


def _lines(file: epath.Path, parse: Callable[[str], T]) -> list[T]:
    """Apply `parse` to each stripped, non-blank line of a text file."""
    with reading(file, "a list of images or classes"):
        lines = file.read_text(encoding="utf-8-sig").splitlines()
        return [parse(line.strip()) for line in lines if line.strip()]
