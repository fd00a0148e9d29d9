"""Images in folders: datasets of your own, and images to classify.

Names that begin with a dot are hidden, in training and in predict alike.
"""

import collections
import contextlib
import glob
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from etils import epath

from dpt_jax.data.records import Dataset, Example, Files
from dpt_jax.errors import UserError, can_be_shown
from dpt_jax.io import as_path, entries, is_remote, reading

EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"}
IMAGE_ENDINGS = ", ".join(sorted(EXTENSIONS))
SHOULD_HOLD = "it should hold train/CLASS/ and test/CLASS/ folders"


def visible(folder: epath.Path, dangling: bool = True) -> list[tuple[str, bool]]:
    """Return (name, is a folder) of what is in a folder, sorted, without hidden names.

    Hidden names are a system's own: a Mac's `._x.png` beside x.png is not an image. Links are
    followed.

    Args:
        folder: local or in a bucket.
        dangling: whether to include links to nothing, as files.
    """
    with reading(folder, "a folder"):
        return sorted(
            (name, is_folder)
            for name, is_folder in entries(folder, dangling)
            if not name.startswith(".")
        )


def walk(folder: epath.Path, above: frozenset[str] = frozenset()) -> Iterator[epath.Path]:
    """Yield the files below a folder, at any depth: first its own by name, then its folders'.

    Args:
        folder: local or in a bucket.
        above: real paths of the folders above, where a link that leads back up ends.
    """
    above |= {os.path.realpath(folder)}
    subfolders = []
    for name, is_folder in visible(folder):
        if not is_folder:
            yield folder / name
        elif os.path.realpath(folder / name) not in above:
            subfolders.append(folder / name)
    for subfolder in subfolders:
        yield from walk(subfolder, above)


def is_image_name(name: str) -> bool:
    """Return whether a name is that of an image, by its ending."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def image_names(folder: epath.Path) -> list[str]:
    """Return the names of the images in a folder, sorted. Raise UserError if it has none."""
    found = visible(folder) if folder.is_dir() else []
    names = [name for name, is_folder in found if not is_folder and is_image_name(name)]
    if not names:
        raise _no_images(folder)
    return names


def _no_images(folder: epath.Path) -> UserError:
    return UserError(f"{folder} holds no images ({IMAGE_ENDINGS}); add some or remove the folder.")


def as_utf8(name: str) -> str:
    """Return a file's name as UTF-8, whatever the locale decoded its bytes as."""
    if sys.getfilesystemencoding() != "utf-8":
        with contextlib.suppress(UnicodeError):
            return os.fsencode(name).decode()
    return name


def endings(files: Iterable[str]) -> str:
    """Return how many files have which ending, "other" for none: "3 .heic, 1 .txt"."""
    count = collections.Counter(os.path.splitext(file)[1].lower() or "other" for file in files)
    return ", ".join(f"{n} {ending}" for ending, n in sorted(count.items()))


class _ClassFolder(NamedTuple):
    """A folder of a class in one split, and its images."""

    name: str
    images: list[str]


def read_folder(path: str | os.PathLike[str]) -> Dataset:
    """Return {train,val,test}/CLASS/IMAGE, with classes in the order of the folder names.

    train/ may be missing, for a dataset that is only evaluated on, and so may val/. The classes
    are those of train/ and test/. Folders of several splits whose names are the same text, but
    for underscores and the form of Unicode, are one class.

    Raises:
        UserError: the folder is not a dataset, a class has no name or no images, or two folders of
            one split are the same class.
    """
    root = as_path(path)
    if not root.is_dir():
        raise UserError(f"dataset.root: {root} is not a folder; {SHOULD_HOLD}.")
    if not (root / "test").is_dir():
        raise UserError(f"dataset.root: {root} has no test/ folder; {SHOULD_HOLD}.")
    left_out: list[str] = []
    splits = {
        split: _class_folders(root, split, left_out) if (root / split).is_dir() else {}
        for split in ("train", "val", "test")
    }
    # The order is that of the folders' names, in which an underscore is not yet a space.
    name_of: dict[str, str] = {}
    for split in ("train", "test"):
        for classname, folder in splits[split].items():
            name = unicodedata.normalize("NFC", as_utf8(folder.name))
            name_of[classname] = min(name, name_of.get(classname, name))
    classnames = sorted(name_of, key=name_of.__getitem__)
    train, val, test = (
        [
            Example(f"{split}/{own.name}/{image}", label)
            for label, classname in enumerate(classnames)
            if (own := folders.get(classname))
            for image in own.images
        ]
        for split, folders in splits.items()
    )
    if not test:
        raise UserError(f"{root / 'test'} holds no class folders with images.")
    _report(root, left_out, classnames, splits["val"])
    return Dataset(Files(root), tuple(classnames), train, val, test)


def _class_folders(root: epath.Path, split: str, left_out: list[str]) -> dict[str, _ClassFolder]:
    """Return {class name: folder} of one split, and add the files that are not used."""
    found: dict[str, _ClassFolder] = {}
    for folder, is_folder in visible(root / split):
        if not is_folder:
            left_out.append(f"{split}/{folder}")
            continue
        classname = _class_name(root / split, folder)
        if classname in found:
            raise UserError(
                f"dataset.root: {found[classname].name!r} and {folder!r} in {root / split} are "
                f"both the class {classname!r}: rename or join them."
            )
        found[classname] = _ClassFolder(folder, [])
        for name, is_folder in visible(root / split / folder):
            if is_folder:
                below = walk(root / split / folder / name)
                left_out.extend(file.relative_to(root).as_posix() for file in below)
            elif is_image_name(name):
                found[classname].images.append(name)
            else:
                left_out.append(f"{split}/{folder}/{name}")
        if not found[classname].images:
            raise _no_images(root / split / folder)
    return found


def _class_name(directory: epath.Path, folder: str) -> str:
    """Return the class name of a folder, as CLIP reads it."""
    # A Mac and Linux write one name in two forms of Unicode.
    name = unicodedata.normalize("NFC", as_utf8(folder))
    classname = " ".join(name.replace("_", " ").split())
    if not classname or not can_be_shown(name):
        raise UserError(
            f"dataset.root: the folder {folder!r} in {directory} is not a class name: rename it."
        )
    return classname


def _report(
    root: epath.Path,
    left_out: list[str],
    classnames: list[str],
    val: dict[str, _ClassFolder],
) -> None:
    """Warn once about files that are not used and about names that are not words."""
    if left_out:
        _say(
            f"{root}: {len(left_out)} files are left out ({endings(left_out)}), such as "
            f"{left_out[0]}: images are those in SPLIT/CLASS/ that end in "
            f"{IMAGE_ENDINGS}."
        )
    if unknown := [folder.name for name, folder in val.items() if name not in classnames]:
        _say(
            f"{root / 'val'}: folders that are left out, since train/ and test/ have no such "
            f"class: {', '.join(unknown)}."
        )
    if ids := wordnet_ids(classnames):
        _say(
            f"{root}: {len(ids)} class folders, such as {ids[0]}, are named by WordNet ids, which "
            "mean nothing to CLIP: rename them to class names."
        )


def wordnet_ids(names: Iterable[str]) -> list[str]:
    """Return the names that are or begin with a WordNet id such as n07753592."""
    return [name for name in names if re.match(r"n\d{8}\b", name)]


def _say(line: str) -> None:
    from dpt_jax.logging import say  # imports JAX, which find_images need not wait for

    say(line)


def find_images(paths: Sequence[str]) -> list[str]:
    """Return the images that paths, folders and patterns name, each once, sorted below each path.

    A file that is named is taken whatever its name ends in. Other files below a folder are left
    out and counted on standard error.

    Raises:
        UserError: a path does not exist, or there are no images.
    """
    found: dict[str, None] = {}
    others: list[str] = []
    for path in paths:
        for one in _named_by(path):
            named = not one.is_dir()
            for file in [one] if named else walk(one):
                if named or is_image_name(file.name):
                    found[os.fspath(file)] = None
                else:
                    others.append(os.fspath(file))
    if not found:
        raise UserError(f"{', '.join(paths)}: no images there ({IMAGE_ENDINGS}).")
    if others:
        print(
            f"files that are left out: {len(others)} without the ending of an image "
            f"({endings(others)}), such as {others[0]}.",
            file=sys.stderr,
        )
    return list(found)


def _named_by(text: str) -> list[epath.Path]:
    """Return the file or folder of that name or, if there is none, those that fit the pattern."""
    path = as_path(text)
    if path.exists():
        return [path]
    if is_remote(path):
        if "**" in text:
            raise UserError(f"{text}: ** works on local files only; name the folder instead.")
        folder = next((p for p in path.parents if not glob.has_magic(os.fspath(p))), path)
        matches = folder.glob(path.relative_to(folder).as_posix())
        named = sorted(match for match in matches if not match.name.startswith("."))
    else:
        named = [as_path(name) for name in sorted(glob.glob(os.fspath(path), recursive=True))]
    if not named:
        raise UserError(
            f"{text} is not there: give an image, a folder of images or a pattern in quotes."
        )
    return named
