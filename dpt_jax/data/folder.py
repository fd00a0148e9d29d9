"""Your own images: a folder of class folders."""

import glob
import os
import pathlib
from collections.abc import Iterator, Sequence

from dpt_jax.data.records import Example, Files, Splits
from dpt_jax.errors import UserError

EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"}


def read_folder(root: pathlib.Path) -> Splits:
    """train/CLASS/IMAGE and test/CLASS/IMAGE; class order is that of the sorted folder names.

    train/ may be missing, for a dataset that is only evaluated on.
    """
    if not root.is_dir():
        raise UserError(
            f"dataset.root: {root} is not a folder; it should hold train/CLASS/ and test/CLASS/ folders."
        )
    if not (root / "test").is_dir():
        raise UserError(
            f"dataset.root: {root} has no test/ folder; it should hold train/CLASS/ and test/CLASS/ folders."
        )
    splits = [root / split for split in ("train", "test") if (root / split).is_dir()]
    folders = sorted(
        {
            f.name
            for split in splits
            for f in split.iterdir()
            if f.is_dir() and not f.name.startswith(".")
        }
    )
    if unreadable := [name for name in folders if not name.isprintable()]:
        raise UserError(
            f"dataset.root: the folder {unreadable[0]!r} in {root} is no name of a class: rename it."
        )
    if not folders:
        raise UserError(f"dataset.root: {root} has no class folders in train/ or test/.")

    def images(split: str, label: int, folder: str) -> list[Example]:
        directory = root / split / folder
        if not directory.is_dir():
            return []
        return [Example(f"{split}/{folder}/{name}", label) for name in image_names(directory)]

    train, test = (
        [
            example
            for label, folder in enumerate(folders)
            for example in images(split, label, folder)
        ]
        for split in ("train", "test")
    )
    if not test:
        raise UserError(f"{root / 'test'} holds no class folders with images.")
    return Splits(
        Files(root), tuple(folder.replace("_", " ") for folder in folders), train, [], test
    )


def image_names(directory: pathlib.Path) -> list[str]:
    """The names of the images in a folder, sorted.  Raises UserError where there are none."""
    # scandir knows from the listing what is a file, without a look at each of ImageNet's 1.3 million.
    found = directory.is_dir() and sorted(
        f.name
        for f in os.scandir(directory)
        if os.path.splitext(f.name)[1].lower() in EXTENSIONS and f.is_file()
    )
    if not found:
        raise UserError(
            f"{directory} holds no images ({', '.join(sorted(EXTENSIONS))}); add some or remove the folder."
        )
    return found


def find_images(paths: Sequence[str]) -> list[str]:
    """The images that paths, folders and patterns name, each once, in the order of the paths and sorted below them.

    A file that is named is taken whatever its name ends in. Raises UserError
    for a path that is not there and where there are no images at all.
    """
    found: dict[str, None] = {}
    for path in paths:
        named = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
        if not named:
            raise UserError(
                f"{path} is not there: give an image, a folder of images or a pattern in quotes."
            )
        for one in named:
            found.update(dict.fromkeys(_below(one) if os.path.isdir(one) else [one]))
    if not found:
        raise UserError(f"{', '.join(paths)}: no images there ({', '.join(sorted(EXTENSIONS))}).")
    return list(found)


def _below(folder: str) -> Iterator[str]:
    for directory, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith("."):
                yield os.path.join(directory, name)
