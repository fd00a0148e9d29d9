"""Images in folders, archives and lists: datasets of your own, and images to classify.

Names that begin with a dot are hidden, in training and in predict alike.
"""

import collections
import contextlib
import csv
import glob
import io
import json
import os
import random
import re
import sys
import unicodedata
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import NamedTuple

from etils import epath

from dpt_jax.data.records import INSTALLED, Dataset, Example, Files, contents, how_to_read
from dpt_jax.errors import UserError, can_be_shown
from dpt_jax.io import as_path, entries, is_remote, reading, unpacked

EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"}
EXTENSIONS |= INSTALLED
IMAGE_ENDINGS = ", ".join(sorted(EXTENSIONS))
SHOULD_HOLD = "it should hold folders CLASS/, or train/CLASS/ and test/CLASS/"
SPLIT_SEED = 1
SPLITS = ("train", "val", "test")
SPLIT_NAMES = {*SPLITS, "training", "valid", "validation", "testing"}  # in small letters
LISTS = (".csv", ".jsonl")


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
            if not name.startswith(".") and name != "__MACOSX"
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
        raise _no_images(folder, [name for name, _ in found])
    return names


def _no_images(folder: epath.Path, others: Iterable[str]) -> UserError:
    return UserError(
        f"{folder} holds no images ({IMAGE_ENDINGS}{how_to_read(others)}); add some or remove the "
        "folder."
    )


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


class Listed(NamedTuple):
    """An image of one's own: its path below the root, and the class as a folder or a list says it.

    Attributes:
        path: relative to the root.
        label: name of the class folder, or the label of a list.
        split: train, val or test; "" if a split is to be drawn.
    """

    path: str
    label: str
    split: str


def read_folder(
    path: str | os.PathLike[str],
    split: str | os.PathLike[str] = "",
    test_fraction: float = 0.2,
    skip_missing: bool = False,
) -> Dataset:
    """Return a dataset of one's own images, with classes in the order of their labels.

    The images are {train,val,test}/CLASS/IMAGE, or CLASS/IMAGE, of which a split is drawn. train/
    may be missing, for a dataset that is only evaluated on, and so may val/. The classes are those
    of training and test. Labels that are the same text, but for underscores and the form of
    Unicode, are one class.

    Args:
        path: a folder, a zip or tar archive of one, or a list of images (see read_list).
        split: a list of the images in use, with their split, instead of a random one.
        test_fraction: of the images of a class, if a split is drawn; as many are for validation.
        skip_missing: whether images that `split` lists may be missing.

    Raises:
        UserError: there is no dataset, a class has no name or too few images, two folders of one
            split are the same class, or an image of `split` is missing.
    """
    source = as_path(path)
    left_out: list[str] = []
    is_list = source.suffix.lower() in LISTS and source.is_file()
    root = source
    if source.is_file():
        root = source.parent if is_list else _unpacked(source)
    if split:
        images = read_list(as_path(split))
        if not skip_missing:
            _check_split(images, root, as_path(split))
    else:
        images = read_list(source) if is_list else _in_folders(root, left_out)
    drawn = not any(image.split for image in images)
    if drawn:
        images = draw_split(images, root, test_fraction)
    dataset = _dataset(root, images, left_out)
    return dataset._replace(split=_as_list(images)) if drawn or split else dataset


def _unpacked(archive: epath.Path) -> epath.Path:
    """Return the folder of an archive; if all of it is below one folder, that one."""
    root = unpacked(archive)
    folders = [name for name, is_folder in visible(root) if is_folder]
    top = root / folders[0] if len(folders) == 1 and folders[0] not in SPLITS else root
    return top if any(is_folder for _, is_folder in visible(top)) else root


def _in_folders(root: epath.Path, left_out: list[str]) -> list[Listed]:
    """Return the images of class folders, and add the files that are not used."""
    if not root.is_dir():
        raise UserError(
            f"dataset.root: {root} is not a folder, an archive or a list; {SHOULD_HOLD}."
        )
    # What holds folders is a split, and not a class that is named so.
    found = [
        name
        for name, is_folder in visible(root)
        if is_folder and name.lower() in SPLIT_NAMES and any(x[1] for x in visible(root / name))
    ]
    if unknown := [name for name in found if name not in SPLITS]:
        raise UserError(
            f"dataset.root: {root / unknown[0]} looks like a split: name it train, val or test."
        )
    if found and "test" not in found:
        raise UserError(
            f"dataset.root: {root} has {found[0]}/ but no test/ with classes: add it, or name "
            f"{root / found[0]}, of which a part is then kept for the test."
        )
    return [image for split in found or [""] for image in _class_folders(root, split, left_out)]


def _class_folders(root: epath.Path, split: str, left_out: list[str]) -> list[Listed]:
    """Return the images of one split, or of all if it is "", and add the files not used."""
    directory, prefix = (root / split, f"{split}/") if split else (root, "")
    folder_of: dict[str, str] = {}
    images = []
    for folder, is_folder in visible(directory):
        if not is_folder:
            left_out.append(f"{prefix}{folder}")
            continue
        classname = _class_name(directory, folder)
        if classname in folder_of:
            raise UserError(
                f"dataset.root: {folder_of[classname]!r} and {folder!r} in {directory} are "
                f"both the class {classname!r}: rename or join them."
            )
        folder_of[classname] = folder
        own: list[Listed] = []
        others: list[str] = []
        for name, is_folder in visible(directory / folder):
            if is_folder:
                below = walk(directory / folder / name)
                others.extend(file.relative_to(root).as_posix() for file in below)
            elif is_image_name(name):
                own.append(Listed(f"{prefix}{folder}/{name}", folder, split))
            else:
                others.append(f"{prefix}{folder}/{name}")
        if not own:
            raise _no_images(directory / folder, others)
        images += own
        left_out += others
    return images


def read_list(file: epath.Path) -> list[Listed]:
    """Return the images that a file lists by path and label, and by split if it says that.

    Args:
        file: a .csv with a header, or a .jsonl. A path is relative to the file's folder. A split is
            train, val or test.

    Raises:
        UserError: it is not such a file, lists nothing or an image twice, or gives some images
            a split and others none.
    """
    with reading(file, "a list of images with path, label and perhaps split"):
        content = file.read_bytes().decode("utf-8-sig", errors="surrogateescape")
        if file.suffix.lower() == ".jsonl":
            rows = [json.loads(line) for line in content.split("\n") if line.strip()]
        else:
            rows = list(csv.DictReader(io.StringIO(content, newline="")))
        cells = [(row["path"], row["label"], row.get("split")) for row in rows]
        images = [Listed(*("" if x is None else str(x) for x in row)) for row in cells]
    paths = collections.Counter(image.path for image in images)
    for image in images:
        if not image.path or not image.label.strip() or image.split not in ("", *SPLITS):
            raise UserError(
                f"{file}: {tuple(image)} is not a path, a label and a split (train, val or test)."
            )
        if paths[image.path] > 1:
            raise UserError(f"{file} lists {image.path!r} more than once: remove the others.")
        if bool(image.split) != bool(images[0].split):
            raise UserError(f"{file} gives {image.path!r} another kind of split than the others.")
    if not images:
        raise UserError(f"{file} lists no images.")
    return images


def _as_list(images: Iterable[Listed]) -> str:
    """Return the CSV file that read_list reads as these images."""
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerows([Listed._fields, *images])
    return text.getvalue()


def _check_split(images: Sequence[Listed], root: epath.Path, file: epath.Path) -> None:
    """Raise UserError if images of a split are missing."""
    missing = [image.path for image in images if not (root / image.path).exists()]
    if missing:
        raise UserError(
            f"dataset.split: {file} lists {len(missing)} images that {root} does not have, such as "
            f"{missing[0]}: add them or, to take other images, give --config.dataset.split= "
            "without a value."
        )


def draw_split(images: Iterable[Listed], root: epath.Path, fraction: float) -> list[Listed]:
    """Return the images with a random split, the same one for the same images.

    Of n images of a class, round(fraction · n) are for the test, at least one, and as many for
    validation. At least one is left to train on unless the fraction is 1. Copies of a file within a
    class are in one split.

    Raises:
        UserError: a class has too few images.
    """
    by_label: dict[str, list[Listed]] = {}
    for image in images:
        by_label.setdefault(image.label, []).append(image)
    generator = random.Random(SPLIT_SEED)
    found = []
    for label, own in sorted(by_label.items()):
        most = len(own) if fraction == 1 else len(own) - 1
        if not most:
            raise UserError(
                f"dataset.root: class {label!r} has one image in {root}, which cannot be split: "
                "add some, or remove the class."
            )
        share = round(fraction * len(own))
        room = {"test": min(max(share, 1), most)}
        room["val"] = min(share, most - room["test"])
        groups: dict[Hashable, list[Listed]] = {}
        for image, content in zip(own, contents(root, [o.path for o in own]), strict=True):
            groups.setdefault(content, []).append(image)
        shuffled = list(groups.values())
        generator.shuffle(shuffled)
        split_of: dict[str, str] = {}
        for group in shuffled:
            split = next((name for name, left in room.items() if left >= len(group)), "train")
            room[split] = room.get(split, 0) - len(group)
            split_of |= {image.path: split for image in group}
        found += [image._replace(split=split_of[image.path]) for image in own]
    return found


def _dataset(root: epath.Path, images: Sequence[Listed], left_out: Sequence[str]) -> Dataset:
    """Return the dataset of images with a split, and report files that are not used."""
    # The order is that of the labels, in which an underscore is not yet a space.
    name_of: dict[str, str] = {}
    for image in images:
        if image.split != "val":
            classname = _class_name(root, image.label)
            name = _composed(image.label)
            name_of[classname] = min(name, name_of.get(classname, name))
    classnames = sorted(name_of, key=name_of.__getitem__)
    label_of = {classname: label for label, classname in enumerate(classnames)}
    splits: dict[str, list[Example]] = {split: [] for split in SPLITS}
    unknown: dict[str, None] = {}
    for image in images:
        label = label_of.get(_class_name(root, image.label))
        if label is None:
            unknown[image.label] = None
        else:
            splits[image.split].append(Example(image.path, label))
    train, val, test = (sorted(own, key=lambda example: example.label) for own in splits.values())
    if not test:
        raise UserError(f"{root} has no class folders with images to test on; {SHOULD_HOLD}.")
    _report(root, left_out, classnames, list(unknown))
    return Dataset(Files(root), tuple(classnames), train, val, test)


def class_name(folder: str) -> str:
    """Return the class name of a folder or a label, as CLIP reads it."""
    return " ".join(_composed(folder).replace("_", " ").split())


def _class_name(directory: epath.Path, folder: str) -> str:
    """Return the class name of a folder.  Raise UserError if it cannot be one."""
    classname = class_name(folder)
    if not classname or not can_be_shown(_composed(folder)):
        raise UserError(
            f"dataset.root: the folder {folder!r} in {directory} is not a class name: rename it."
        )
    return classname


def _composed(name: str) -> str:
    """Return a name in the form of Unicode that Linux writes, where a Mac has another."""
    return unicodedata.normalize("NFC", as_utf8(name))


def _report(
    root: epath.Path, left_out: Sequence[str], classnames: Sequence[str], unknown: Sequence[str]
) -> None:
    """Warn once about files that are not used and about names that are not words."""
    if left_out:
        _say(
            f"{root}: {len(left_out)} files are left out ({endings(left_out)}), such as "
            f"{left_out[0]}: images are those in class folders that end in "
            f"{IMAGE_ENDINGS}{how_to_read(left_out)}."
        )
    if unknown:
        _say(
            f"{root}: validation images are left out, since train and test have no such class: "
            f"{', '.join(unknown)}."
        )
    if ids := wordnet_ids(classnames):
        _say(
            f"{root}: {len(ids)} classes, such as {ids[0]}, are named by WordNet ids, which "
            "mean nothing to CLIP: rename them to class names."
        )
    if all(name.isdigit() for name in classnames):
        _say(f"{root}: the classes are numbers, which mean little to CLIP: give them names.")


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
        raise UserError(
            f"{', '.join(paths)}: no images there ({IMAGE_ENDINGS}{how_to_read(others)})."
        )
    if others:
        print(
            f"files that are left out: {len(others)} without the ending of an image "
            f"({endings(others)}), such as {others[0]}{how_to_read(others)}.",
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
