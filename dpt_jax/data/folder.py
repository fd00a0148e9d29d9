"""A user's own images: in folders, archives, lists or memory, to train on or to classify.

Names that begin with a dot are hidden, in training and in predict alike.
"""

import collections
import contextlib
import csv
import dataclasses
import functools
import glob
import hashlib
import io
import itertools
import json
import os
import random
import re
import sys
import unicodedata
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from PIL import Image

from dpt_jax.data import records
from dpt_jax.data.records import Dataset, Example, Files
from dpt_jax.errors import UserError, can_be_shown
from dpt_jax.io import BUCKETS, as_path, entries, file_system, is_remote, reading, unpacked

SHOULD_HOLD = "it should hold folders CLASS/, or train/CLASS/ and test/CLASS/"
SPLITS = ("train", "val", "test")
SPLIT_NAMES = {*SPLITS, "training", "valid", "validation", "testing"}  # in small letters
SPLIT_SEED = 1  # of random splits, the same for all runs

# Paths, PIL images or uint8 arrays (H, W) or (H, W, 3), one or a sequence of N; also an array
# (N, H, W, 3) or (N, H, W).
Images = Any
# N class names, or N class indices from 0.
Labels = Iterable[str] | Iterable[int] | np.ndarray


def visible(folder: epath.Path) -> list[tuple[str, bool]]:
    """Return (name, is a folder) of a folder's entries, sorted, without macOS's or hidden ones."""
    with reading(folder, "a folder"):
        return sorted(
            (name, is_folder)
            for name, is_folder in entries(folder)
            if not name.startswith(".") and name != "__MACOSX"
        )


def folders_in(folder: epath.Path) -> list[str]:
    """Return the names of the folders in a folder, sorted."""
    return [name for name, is_folder in visible(folder) if is_folder]


def walk(folder: epath.Path, above: frozenset[str] = frozenset()) -> Iterator[epath.Path]:
    """Yield the files below a folder, at any depth: its own by name, then those of its folders.

    Links back to the folders `above`, by their real paths, are not followed.
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


def check_files(files: Files, paths: Iterable[str], listed_by: str) -> None:
    """Raise UserError if a file that `listed_by` lists is missing.

    Lists each folder once, which is faster than asking for each file.
    """

    @functools.cache
    def names_in(parent: str) -> set[str]:
        folder = files.file(parent)
        with reading(folder, "a folder"):
            found = entries(folder, dangling=False) if folder.is_dir() else ()
            return {name for name, is_folder in found if not is_folder}

    split = ((path, *path.rpartition("/")) for path in paths)
    missing = [files.file(path) for path, parent, _, name in split if name not in names_in(parent)]
    if missing:
        raise UserError(
            f"{listed_by}: missing files ({len(missing)}), such as {missing[0]}: add them, or "
            "leave missing images out with dataset.on_error=skip."
        )


def is_image_name(name: str) -> bool:
    """Return whether a name is that of an image, by its ending."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in records.EXTENSIONS


def no_images(folder: epath.Path) -> UserError:
    """Return the error for a class folder without images."""
    endings = records.IMAGE_ENDINGS
    return UserError(f"{folder} holds no images ({endings}); add some or remove the folder.")


def left_out_line(files: Sequence[epath.Path]) -> str:
    """Return a line that counts unused files by their endings."""
    count = collections.Counter(file.suffix.lower() or "other" for file in files)
    kinds = ", ".join(f"{n} {ending}" for ending, n in sorted(count.items()))
    return (
        f"{len(files)} files are left out ({kinds}), such as {files[0]}: images end in "
        f"{records.IMAGE_ENDINGS}."
    )


class Listed(NamedTuple):
    """One of the user's own images."""

    path: str  # relative to the root
    label: str  # name of the class folder, or the label of a list
    split: str  # train, val or test; "" if a split is drawn


def read_folder(
    path: str | os.PathLike[str],
    split: str | os.PathLike[str] = "",
    test_fraction: float = 0.2,
    skip_missing: bool = False,
) -> Dataset:
    """Return a dataset of the user's own images, with classes in the order of their labels.

    Args:
        path: a folder with {train,val,test}/CLASS/IMAGE or CLASS/IMAGE, a zip or tar archive of
          one, or a list of images (see read_list).
        split: a list of the images in use, with their split, instead of a random one.
        test_fraction: fraction of each class for the test and for validation, if drawn.
        skip_missing: whether listed images may be missing.
    """
    root = source = as_path(path)
    is_list = source.suffix.lower() in (".csv", ".jsonl") and source.is_file()
    if source.is_file():
        root = source.parent if is_list else _unpacked(source)
    if split or is_list:
        images = read_list(as_path(split) if split else source)
        by = f"dataset.split={split} (--config.dataset.split= drops it)" if split else str(source)
        if not skip_missing:
            check_files(Files(root), [image.path for image in images], by)
    else:
        images = _in_folders(root)
    drawn = not any(image.split for image in images)
    if drawn:
        images = draw_split(images, root, test_fraction)
    dataset = _dataset(root, images)
    if not (drawn or split):
        return dataset
    used = io.StringIO(newline="")
    csv.writer(used, lineterminator="\n").writerows([Listed._fields, *images])
    return dataset._replace(split=used.getvalue())


def _unpacked(archive: epath.Path) -> epath.Path:
    """Return the folder of an archive, or the one folder that all of it is below."""
    root = unpacked(archive)
    folders = folders_in(root)
    top = root / folders[0] if len(folders) == 1 and folders[0] not in SPLITS else root
    return top if folders_in(top) else root


def _in_folders(root: epath.Path) -> list[Listed]:
    """Return the images of class folders, and print a line about other files."""
    from dpt_jax.logging import say  # imports JAX, which find_images need not wait for

    folders = folders_in(root)
    # Only a folder with folders in it is a split: a class may have the same name.
    splits = [x for x in folders if x.lower() in SPLIT_NAMES and folders_in(root / x)]
    if misnamed := [name for name in splits if name not in SPLITS]:
        raise UserError(f"{root / misnamed[0]} looks like a split: name it train, val or test.")
    if splits and (others := {*folders} - {*splits}):
        say(f"{root}: only its folders train, val and test are used, not {min(others)}.")
    images: list[Listed] = []
    left_out: list[epath.Path] = []
    for split in splits or [""]:
        for name, is_folder in visible(root / split):
            entry = root / split / name
            files = list(walk(entry)) if is_folder else [entry]
            own = [x for x in files if x.parent == entry and is_image_name(x.name)]
            if is_folder and not own:
                raise no_images(entry)
            images += [Listed(x.relative_to(root).as_posix(), name, split) for x in own]
            left_out += sorted({*files} - {*own})
    if left_out:
        say(f"{left_out_line(left_out)} Only images in class folders are used.")
    return images


def read_list(file: epath.Path) -> list[Listed]:
    """Return what a .csv with a header, or a .jsonl, lists by path, label and perhaps split."""
    with reading(file, "a list of images with path, label and perhaps split"):
        content = file.read_bytes().decode("utf-8-sig", errors="surrogateescape")
        if file.suffix.lower() == ".jsonl":
            rows = [json.loads(line) for line in content.split("\n") if line.strip()]
        else:
            rows = list(csv.DictReader(io.StringIO(content, newline="")))
        if not rows:
            raise ValueError("it lists no images")
        images: dict[str, Listed] = {}
        known = SPLITS if rows[0].get("split") else ("",)
        for row in rows:
            cells = (row["path"], row["label"], row.get("split"))
            image = Listed(*("" if cell is None else str(cell) for cell in cells))
            wrong = not image.path or not image.label.strip() or image.split not in known
            if wrong or image.path in images:
                raise ValueError(f"{tuple(image)} is there twice, or lacks path, label or split")
            images[image.path] = image
    return [*images.values()]


def draw_split(images: Iterable[Listed], root: epath.Path, fraction: float) -> list[Listed]:
    """Return the images with a random split, the same one for the same images.

    The fraction of each class is for testing, and the same for validation. At least one image is
    for testing and, unless it is 1, one for training. Copies of a file in a class are in one split.
    """
    images = sorted(images, key=lambda image: image.label)
    generator = random.Random(SPLIT_SEED)
    split_of: dict[str, str] = {}
    for label, group in itertools.groupby(images, key=lambda image: image.label):
        own = [image.path for image in group]
        most = len(own) if fraction == 1 else len(own) - 1
        if not most:
            raise UserError(
                f"dataset.root: class {label!r} has one image in {root}, which cannot be split: "
                "add some, or remove the class."
            )
        share = round(fraction * len(own))
        test = min(max(share, 1), most)
        room = {"test": test, "val": min(share, most - test), "train": len(own)}
        copies: dict[Hashable, list[str]] = {}
        for path, content in zip(own, records.contents(root, own), strict=True):
            copies.setdefault(content, []).append(path)
        shuffled = list(copies.values())
        generator.shuffle(shuffled)
        for paths in shuffled:
            split = next(name for name, left in room.items() if left >= len(paths))
            room[split] -= len(paths)
            split_of |= dict.fromkeys(paths, split)
    return [image._replace(split=split_of[image.path]) for image in images]


def _dataset(root: epath.Path, images: Sequence[Listed]) -> Dataset:
    """Return the dataset of images with a split, and print what would lower its accuracy."""
    from dpt_jax.logging import say

    name_of = {image.label: class_name(image.label) for image in images}
    for label, name in name_of.items():
        if not name or not can_be_shown(_composed(label)):
            raise UserError(
                f"dataset.root: {label!r} in {root} is not a class name: rename the folder."
            )
    # Sorted by the labels, before their underscores become spaces.
    labels = sorted({_composed(image.label) for image in images if image.split != "val"})
    classnames = tuple(dict.fromkeys(class_name(label) for label in labels))
    label_of = {name: label for label, name in enumerate(classnames)}
    splits: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for image in images:
        if name_of[image.label] in label_of:
            splits[image.split].append(Example(image.path, label_of[name_of[image.label]]))
    for own in splits.values():
        own.sort(key=lambda example: example.label)
    if not splits["test"]:
        raise UserError(f"{root} has no class folders with images to test on; {SHOULD_HOLD}.")
    if unknown := [label for label, name in name_of.items() if name not in label_of]:
        say(
            f"{root}: validation images are left out, since train and test have no such class: "
            f"{', '.join(unknown)}."
        )
    if ids := [name for name in classnames if re.match(r"n\d{8}\b|\d+$", name)]:
        say(
            f"{root}: {len(ids)} classes, such as {ids[0]}, are numbers or WordNet ids, which mean "
            "little to CLIP: rename them to class names."
        )
    return Dataset(Files(root), classnames, splits["train"], splits["val"], splits["test"])


def class_name(folder: str) -> str:
    """Return the class name of a folder or a label, as CLIP reads it."""
    return " ".join(_composed(folder).replace("_", " ").split())


def _composed(name: str) -> str:
    """Return a name in Unicode's composed form; macOS may write the decomposed form."""
    if sys.getfilesystemencoding() != "utf-8":  # but the bytes of names may be
        with contextlib.suppress(UnicodeError):
            name = os.fsencode(name).decode()
    return unicodedata.normalize("NFC", name)


def find_images(paths: Sequence[str]) -> list[str]:
    """Return the images that paths, folders and patterns name, each once, sorted below each path.

    A file that is named is used whatever its ending.
    """
    found: dict[str, None] = {}
    others: list[epath.Path] = []
    for path in paths:
        for one in _named_by(path):
            named = not one.is_dir()
            for file in [one] if named else walk(one):
                if named or is_image_name(file.name):
                    found[os.fspath(file)] = None
                else:
                    others.append(file)
    if not found:
        raise UserError(f"{', '.join(paths)}: no images there ({records.IMAGE_ENDINGS}).")
    if others:
        print(left_out_line(others), file=sys.stderr)
    return list(found)


def _named_by(text: str) -> list[epath.Path]:
    """Return the file or folder of that name or, if there is none, those that match the pattern."""
    path = as_path(text)
    if path.exists():
        return [path]
    if is_remote(path):
        found = [as_path(BUCKETS + name) for name in sorted(file_system(path).glob(text))]
        named = [path for path in found if not path.name.startswith(".")]
    else:
        named = [as_path(name) for name in sorted(glob.glob(os.fspath(path), recursive=True))]
    if not named:
        raise UserError(
            f"{text} does not exist: give an image, a folder of images or a pattern in quotes."
        )
    return named


def image_list(images: Images) -> list[Any]:
    """Return one image or several as a list."""
    shape: tuple[int, ...] = getattr(images, "shape", ())
    one_array = len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4))
    if isinstance(images, str | os.PathLike | Image.Image) or one_array:
        return [images]
    if not isinstance(images, Iterable):
        raise UserError(f"images are paths, PIL images or uint8 arrays, not {images!r:.80}.")
    return list(np.asarray(images) if len(shape) > 2 else images)


def as_rgb(image: Any) -> Image.Image:
    """Return an image of any form as a PIL image.  Raise UserError if it is not an image."""
    try:
        if isinstance(image, str | os.PathLike):
            return records.read_image(image)
        if isinstance(image, Image.Image):
            return records.to_rgb(image)
    except Exception as reason:  # an opened image is decoded only now
        raise UserError(f"{image!r} cannot be read ({str(reason).removesuffix('.')}).") from reason
    array = np.asarray(image)
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not shaped or not array.size:
        raise UserError(
            "an image is a path, a PIL image or a uint8 array (H, W) or (H, W, 3), not an array "
            f"of {array.dtype} with shape {array.shape}."
        )
    return Image.fromarray(array).convert("RGB")


def check_classnames(classnames: Iterable[str], source: str) -> list[str]:
    """Return class names as a list.  Raise UserError for blank, repeated or no names."""
    names = [classnames] if isinstance(classnames, str) else list(classnames)
    for name in names:
        if not isinstance(name, str) or not name.strip() or not can_be_shown(name):
            raise UserError(f"{source}: {name!r} is not a class name.")
    if isinstance(classnames, str) or not names or len({*names}) < len(names):
        raise UserError(f"{source} is {names!r:.80}: give a list of different names.")
    return [str(name) for name in names]  # also strings of NumPy's


def check_count(labels: int, images: int) -> None:
    """Raise UserError if there is not one label for each image, or no image."""
    if labels != images or not images:
        raise UserError(f"give a label for each image: there are {images} and {labels} labels.")


def label_indices(
    labels: Labels, images: int, classnames: Iterable[str] | None = None
) -> tuple[np.ndarray, list[str]]:
    """Return class indices (N,) int32 and the C class names for the labels of N images.

    Without `classnames`, they are the names in the labels, sorted, or "0", "1", … for numbers.
    """
    if isinstance(labels, str) or not isinstance(labels, Iterable):
        raise UserError(f"labels is {labels!r:.80}: give a class name or an index for each image.")
    values = [x.item() if hasattr(x, "item") and np.size(x) == 1 else x for x in labels]
    check_count(len(values), images)
    numbers = all(type(value) is int for value in values)
    if not numbers and not all(isinstance(value, str) for value in values):
        raise UserError(f"labels are class names or whole numbers from 0, not {values[0]!r:.80}.")
    different = sorted(set(values))
    named = map(str, range(len(different)) if numbers else different)
    names = check_classnames(named if classnames is None else classnames, "classnames")
    index = {i if numbers else name: i for i, name in enumerate(names)}
    if unknown := [value for value in values if value not in index]:
        raise UserError(f"the label {unknown[0]!r} is not a class: these are {[*index]!r:.80}.")
    return np.array([index[value] for value in values], np.int32), names


@dataclasses.dataclass(frozen=True)
class InMemory(Files):
    """Reads files by their path, and images in memory by the digest of their pixels."""

    images: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __call__(self, path: str) -> Image.Image:
        """Return an image; only those from files are cached."""
        return as_rgb(self.images[path]) if path in self.images else super().__call__(path)

    def key(self, path: str) -> Hashable:
        """Return the digest, or what identifies a file."""
        return path if path in self.images else super().key(path)


def in_memory(
    images: Images,
    labels: Labels,
    classnames: Sequence[str] | None = None,
    validation: tuple[Images, Labels] | None = None,
    skip_missing: bool = False,
) -> Dataset:
    """Return images and labels as a dataset without test images; raise UserError as label_indices.

    An example's path is the absolute path of a file, or the digest of an image in memory, so that
    the digest of a dataset covers its pixels. `skip_missing`: whether a file may be missing.
    """
    held: dict[str, Any] = {}

    def example(image: Any, label: int) -> Example:
        if isinstance(image, str | os.PathLike):
            path = as_path(image)
            return Example(str(path if is_remote(path) else path.absolute()), int(label))
        pixels = as_rgb(image)
        digest = hashlib.sha256(f"{pixels.size}".encode() + pixels.tobytes()).hexdigest()
        held[digest] = image
        return Example(digest, int(label))

    def examples(
        images: Images, labels: Labels, names: Sequence[str] | None
    ) -> tuple[list[Example], list[str]]:
        given = image_list(images)
        indices, names = label_indices(labels, len(given), names)
        return list(map(example, given, indices)), names

    train, names = examples(images, labels, classnames)
    val: list[Example] = []
    if validation is not None:
        if not isinstance(validation, Sequence) or len(validation) != 2:
            raise UserError("validation is not (images, labels).")
        val, _ = examples(*validation, names)
    read = InMemory(as_path("/"), images=held) if held else Files(as_path("/"))
    if not skip_missing:
        check_files(read, [e.path for e in (*train, *val) if e.path not in held], "images")
    return Dataset(read, tuple(names), train, val, [])
