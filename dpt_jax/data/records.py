"""What every source of images gives: examples, their splits, and a way to read an image."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

from PIL import Image

from dpt_jax.errors import UserError

# An example's path to its image as RGB. Picklable, since loader processes get it.
Reader = Callable[[str], Image.Image]


class Example(NamedTuple):
    """One image: its path relative to the dataset's root, and its class index."""

    path: str
    label: int


class Splits(NamedTuple):
    """A whole dataset of C classes, before a few-shot sample is drawn."""

    read: Reader
    classnames: tuple[str, ...]
    train: list[Example]
    val: list[Example]
    test: list[Example]


class UnreadableImageError(UserError):
    """An image file that is missing or is none."""


@dataclasses.dataclass(frozen=True)
class Files:
    """Reads image files below a folder."""

    root: pathlib.Path

    def __call__(self, path: str) -> Image.Image:
        """Raises UnreadableImageError."""
        return read_image(self.root / path)


def read_image(file: pathlib.Path | BinaryIO, name: str = "") -> Image.Image:
    """The image as RGB.  Raises UnreadableImageError naming a file that is none.

    name: what to call an open file. As in the published pipeline a camera's
    orientation tag is not followed and transparency is dropped. Sixteen bits a
    pixel, which PIL would cut off at 255, are scaled to eight.
    """
    name = name or str(file)
    try:
        with Image.open(file) as image:
            return to_rgb(image)
    except FileNotFoundError as reason:
        raise UnreadableImageError(f"{name} is not there.") from reason
    except Exception as reason:  # PIL's decoders raise what they like
        raise UnreadableImageError(f"{name} cannot be read as an image ({reason}).") from reason


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB, see read_image."""
    if image.mode.startswith("I"):
        return image.convert("I").point(lambda value: value / 257).convert("L").convert("RGB")
    return image.convert("RGB")
