"""What every source of images gives: examples, their splits, and a way to read an image."""

import dataclasses
import functools
import io
import os
import sys
import warnings
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

from etils import epath
from PIL import Image, ImageOps, TiffImagePlugin

from dpt_jax.errors import UserError
from dpt_jax.runtime.files import as_path, is_remote

# An example's path to its image as RGB. Picklable, since loader processes get it.
Reader = Callable[[str], Image.Image]

# read_image has sentences of its own. Loader threads share the filter, so it is set once.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

EIGHT_BITS = {
    *("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX"),
    *("CMYK", "YCbCr", "LAB", "HSV"),
}
# PIL gives 16-bit greys of these formats as 32-bit numbers from 0 to 65535, in some versions.
SIXTEEN_BITS_AS_32 = ("PNG", "PPM")


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

    root: epath.Path

    def __call__(self, path: str) -> Image.Image:
        """Return the image. Raise UnreadableImageError."""
        return read_image(self.root / path)

    def state(self, path: str) -> tuple[int, int] | None:
        """Return what changes with a local file: its bytes and its time; None for no such file."""
        try:
            found = os.stat(self.root / path)
        except OSError:
            return None
        return found.st_size, found.st_mtime_ns


def read_image(file: str | os.PathLike[str] | BinaryIO, name: str = "") -> Image.Image:
    """Return the image as RGB. Raise UnreadableImageError naming a file that is none.

    name: what to call an open file. As in the published pipeline a camera's
    orientation tag is not followed and transparency is dropped. See to_rgb for
    pixels of more than eight bits.
    """
    name = name or str(file)
    try:
        if isinstance(file, str | os.PathLike) and is_remote(file):
            file = io.BytesIO(as_path(file).read_bytes())
        with Image.open(file) as image:
            _report_if_large(name, *image.size)
            return to_rgb(image)
    except FileNotFoundError as reason:
        raise UnreadableImageError(f"{name} is not there.") from reason
    except Image.DecompressionBombError as reason:
        raise UnreadableImageError(
            f"{name} cannot be read as an image (it has more than {2 * _pixels_limit() / 1e6:.0f} "
            "million pixels: make it smaller)."
        ) from reason
    except Exception as reason:  # PIL's decoders raise what they like
        raise UnreadableImageError(f"{name} cannot be read as an image ({reason}).") from reason


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image of any mode as RGB. Raise UnreadableImageError where its scale is unknown.

    Sixteen bits a pixel, which PIL would cut off at 255, are scaled to eight.
    Of 32-bit and floating-point pixels nothing says which value is white.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in SIXTEEN_BITS_AS_32):
        return _deep_grey(image).convert("RGB")
    if image.mode not in EIGHT_BITS:
        kind = {"I": "32-bit whole numbers", "F": "floating-point numbers"}.get(image.mode)
        raise UnreadableImageError(
            f"its pixels are {kind or f'of the kind {image.mode}'}, of which nothing says "
            "what is white: save it with 8 or 16 bits a pixel"
        )
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # PIL warns where it drops a table of transparencies at once
    if image.mode in ("RGBa", "La"):
        image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
    return image.convert("RGB")


def _deep_grey(image: Image.Image) -> Image.Image:
    """Return a grey image of 16 bits a pixel with 8. A TIFF may have 12 bits, or 0 for white."""
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    (bits,) = tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))
    step = (2**bits - 1) / 255
    grey = image.convert("I").point(lambda value: value / step).convert("L")
    inverted = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    return ImageOps.invert(grey) if inverted else grey


def _pixels_limit() -> int:
    """Return the number of pixels from which on an image is large; twice it is refused."""
    return Image.MAX_IMAGE_PIXELS or sys.maxsize


def _report_if_large(name: str, width: int, height: int) -> None:
    if width * height > _pixels_limit():
        _report_large(name, width, height)


@functools.cache  # once a file, not once an epoch
def _report_large(name: str, width: int, height: int) -> None:
    # Not by way of the console, which asks JAX for the host: loader processes must not start it.
    print(
        f"{name} is large, {width} x {height} pixels: reading it takes time and about "
        f"{3 * width * height / 2**30:.1f} GiB of memory.",
        file=sys.stderr,
    )
