"""Images and labels that a Python caller gives, instead of a folder."""

import dataclasses
import hashlib
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from dpt_jax.data.folder import check_files
from dpt_jax.data.records import Dataset, Example, Files, read_image, to_rgb
from dpt_jax.errors import UserError, can_be_shown
from dpt_jax.io import as_path, is_remote

# Paths, PIL images or uint8 arrays (H, W) or (H, W, 3), one or a sequence of N; also an array
# (N, H, W, 3) or (N, H, W).
Images = Any
# N class names, or N class indices from 0.
Labels = Iterable[str] | Iterable[int] | np.ndarray


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
            return read_image(image)
        if isinstance(image, Image.Image):
            return to_rgb(image)
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
    """Return class names as a list.  Raise UserError if one is blank or occurs twice, or none."""
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
