"""Your own images: a folder of class folders, or images to classify."""

import glob
import os
import sys
import unicodedata
from collections.abc import Sequence

from etils import epath

from dpt_jax.data.listing import (
    EXTENSIONS,
    endings,
    image_names,
    is_image_name,
    visible,
    walk,
)
from dpt_jax.data.records import Example, Files, Splits
from dpt_jax.errors import UserError, can_be_shown
from dpt_jax.io import as_path, is_remote, listed_once

SHOULD_HOLD = "it should hold train/CLASS/ and test/CLASS/ folders"


def read_folder(path: str | os.PathLike[str]) -> Splits:
    """Return {train,val,test}/CLASS/IMAGE, with classes in the order of the folder names.

    train/ may be missing, for a dataset that is only evaluated on, and so may val/.
    The classes are those of train/ and test/, where folders whose names are the same
    text are one class. Raise UserError for a folder that is no dataset, a name that
    is no class name and two folders of one split that are one text.
    """
    root = as_path(path)
    with listed_once(root):
        return _read_folder(root)


def _read_folder(root: epath.Path) -> Splits:
    if not root.is_dir():
        raise UserError(f"dataset.root: {root} is not a folder; {SHOULD_HOLD}.")
    if not (root / "test").is_dir():
        raise UserError(f"dataset.root: {root} has no test/ folder; {SHOULD_HOLD}.")
    splits = [split for split in ("train", "val", "test") if (root / split).is_dir()]
    folders = {split: _folder_by_class(root / split) for split in splits}
    # The order is that of the folders' names, in which an underscore is not yet a space.
    name_of: dict[str, str] = {}
    for split in (split for split in splits if split != "val"):
        for classname, folder in folders[split].items():
            name = unicodedata.normalize("NFC", folder)
            name_of[classname] = min(name, name_of.get(classname, name))
    classnames = sorted(name_of, key=name_of.__getitem__)
    if not classnames:
        raise UserError(f"dataset.root: {root} has no class folders in train/ or test/.")

    def examples(split: str) -> list[Example]:
        return [
            Example(f"{split}/{folder}/{image}", label)
            for label, classname in enumerate(classnames)
            if (folder := folders.get(split, {}).get(classname))
            for image in image_names(root / split / folder)
        ]

    train, val, test = (examples(split) for split in ("train", "val", "test"))
    if not test:
        raise UserError(f"{root / 'test'} holds no class folders with images.")
    _report_left_out(root, splits)
    if unknown := [one for name, one in folders.get("val", {}).items() if name not in name_of]:
        _say(
            f"{root / 'val'}: folders that are left out, since train/ and test/ have no such "
            f"class: {', '.join(unknown)}."
        )
    return Splits(Files(root), tuple(classnames), train, val, test)


def _folder_by_class(directory: epath.Path) -> dict[str, str]:
    """Return {class name: folder} of one split."""
    found: dict[str, str] = {}
    for folder in (entry.name for entry in visible(directory) if entry.is_folder):
        if not can_be_shown(folder):
            raise UserError(
                f"dataset.root: the folder {folder!r} in {directory} is no name of a class: "
                "rename it."
            )
        # A Mac and Linux write one name in two forms of Unicode.
        classname = " ".join(unicodedata.normalize("NFC", folder).replace("_", " ").split())
        if not classname:
            raise UserError(
                f"dataset.root: the name of the folder {folder!r} in {directory} is blank: "
                "rename it."
            )
        if classname in found:
            raise UserError(
                f"dataset.root: {found[classname]!r} and {folder!r} in {directory} are both the "
                f"class {classname!r}: rename or join them."
            )
        found[classname] = folder
    return found


def _report_left_out(root: epath.Path, splits: Sequence[str]) -> None:
    """Say once which files are not taken, for their ending or their place."""
    beside: list[str] = []
    below: list[str] = []
    others: list[str] = []
    for split in splits:
        for name, is_folder in visible(root / split):
            if not is_folder:
                (beside if is_image_name(name) else others).append(f"{split}/{name}")
                continue
            for inner, is_inner_folder in visible(root / split / name):
                if is_inner_folder:
                    below += [
                        f"{split}/{name}/{inner}/…/{file.name}"
                        for file in walk(root / split / name / inner)
                        if is_image_name(file.name)
                    ]
                elif not is_image_name(inner):
                    others.append(f"{split}/{name}/{inner}")
    kinds = (
        (beside, "beside the class folders"),
        (below, "in folders below a class folder"),
        (others, f"without the ending of an image ({endings(others)})"),
    )
    found = [f"{len(files)} {what}, such as {files[0]}" for files, what in kinds if files]
    if found:
        _say(f"{root}: files that are left out: {'; '.join(found)}.")


def _say(line: str) -> None:
    from dpt_jax.logging import say  # imports JAX, which find_images need not wait for

    say(line)


def find_images(paths: Sequence[str]) -> list[str]:
    """Return the images that paths, folders and patterns name, each once, sorted below each path.

    A file that is named is taken whatever its name ends in. Files below a folder
    that do not end as an image does are left out and counted on standard error.
    Raise UserError for a path that is not there and where there are no images.
    """
    found: dict[str, None] = {}
    others: list[str] = []
    for path in paths:
        for one in _named_by(path):
            if not one.is_dir():
                found[os.fspath(one)] = None
                continue
            for file in walk(one):
                if is_image_name(file.name):
                    found[os.fspath(file)] = None
                else:
                    others.append(os.fspath(file))
    if not found:
        raise UserError(f"{', '.join(paths)}: no images there ({', '.join(sorted(EXTENSIONS))}).")
    if others:
        print(
            f"files that are left out: {len(others)} without the ending of an image "
            f"({endings(others)}), such as {others[0]}.",
            file=sys.stderr,
        )
    return list(found)


def _named_by(text: str) -> list[epath.Path]:
    """Return the file or folder of that name or, without one, those that fit the pattern."""
    path = as_path(text)
    if path.exists():
        return [path]
    if is_remote(path):
        if "**" in text:
            raise UserError(f"{text}: ** works on local files only; name the folder instead.")
        folder = next((p for p in path.parents if not glob.has_magic(os.fspath(p))), path)
        named = sorted(folder.glob(path.relative_to(folder).as_posix()))
    else:
        named = [as_path(name) for name in sorted(glob.glob(os.fspath(path), recursive=True))]
    if not named:
        raise UserError(
            f"{text} is not there: give an image, a folder of images or a pattern in quotes."
        )
    return named
