"""What every source of images gives: examples, their splits, and a way to read an image."""

import dataclasses
import functools
import hashlib
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import BinaryIO, NamedTuple, Protocol

from etils import epath
from PIL import Image, ImageOps, TiffImagePlugin

from dpt_jax.errors import UserError
from dpt_jax.io import as_path, is_remote
from dpt_jax.runtime import object_store
from dpt_jax.runtime.bucket import as_bucket_path
from dpt_jax.runtime.store_errors import StoreError

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


class Source(Protocol):
    """The Reader of a dataset, which knows when an image has become another."""

    def __call__(self, path: str) -> Image.Image:
        """Return the image. Raise UnreadableImageError."""

    def state(self, paths: Iterable[str]) -> str:
        """Return a digest that another one takes the place of where one of the images changes."""


class Splits(NamedTuple):
    """A whole dataset of C classes, before a few-shot sample is drawn."""

    read: Source
    classnames: tuple[str, ...]
    train: list[Example]
    val: list[Example]
    test: list[Example]


class UnreadableImageError(UserError):
    """An image file that is missing or is none."""


@dataclasses.dataclass(frozen=True)
class Files:
    """Reads image files below a folder.

    listed: of a folder in a bucket the generations of the objects by their keys, as it was listed.
    An image is read as it was then.
    """

    root: epath.Path
    listed: Mapping[str, int] = dataclasses.field(default_factory=dict, repr=False)

    def __call__(self, path: str) -> Image.Image:
        """Return the image.

        Raise UnreadableImageError, and UserError where it was written again after the listing.
        """
        file = self.root / path
        if (generation := self._generation(path)) is None:
            return read_image(file)
        name = as_bucket_path(file).object_name
        try:
            content = object_store.read(name, generation)
        except FileNotFoundError as reason:
            if file.is_file():
                raise UserError(
                    f"{file} was written again while this run used it: give the same command "
                    "again, which takes the images as they are then."
                ) from reason
            raise UnreadableImageError(f"{file} is not there.") from reason
        return read_image(io.BytesIO(content), str(file))

    def only(self, paths: Iterable[str]) -> "Files":
        """Return a reader of these images, which knows of no others."""
        keys = {self._key(path) for path in paths} if self.listed else ()
        return Files(self.root, {key: self.listed[key] for key in keys if key in self.listed})

    def state(self, paths: Iterable[str]) -> str:
        """Return what changes with any of these images: a digest of what is known of each file."""
        if is_remote(self.root):
            return digest_of_states([str(self.root), *map(self._generation, paths)])
        files = [state_of_file(self.root / path) for path in paths]
        return digest_of_states([os.path.realpath(self.root), *files])

    def _generation(self, path: str) -> int | None:
        """Return that of an object in a bucket, None where none was listed."""
        return self.listed.get(self._key(path)) if self.listed else None

    def _key(self, path: str) -> str:
        return as_bucket_path(self.root / path).object_name.key


def state_of_file(file: str | os.PathLike[str]) -> tuple[int, ...] | None:
    """Return what changes with a local file, None for no such file.

    That is its size and its times. Who copies a file may set the first of them, mtime, but not the
    second, ctime.
    """
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def digest_of_states(states: Iterable[object]) -> str:
    """Return the SHA-256 of what is known of several files, in their order."""
    found = hashlib.sha256()
    for state in states:
        found.update(f"{state!r}\n".encode())
    return found.hexdigest()


def read_image(file: str | os.PathLike[str] | BinaryIO, name: str = "") -> Image.Image:
    """Return the image as RGB. Raise UnreadableImageError naming a file that is none.

    Raise StoreError where a bucket does not let it be read.
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
    except StoreError:  # which says nothing of this image
        raise
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
