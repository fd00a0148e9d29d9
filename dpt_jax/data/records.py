"""Examples of a dataset, the cache of its decoded images, and image files as RGB."""

import abc
import collections
import contextlib
import dataclasses
import errno
import hashlib
import importlib
import importlib.util
import io
import os
import pathlib
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

from etils import epath
from PIL import Image, ImageOps, TiffImagePlugin

from dpt_jax.errors import UserError
from dpt_jax.io import as_path, is_remote, reading

# From an example's path to its RGB image. Picklable, since it is sent to loader processes.
Reader = Callable[[str], Image.Image]

# Raster formats only: for PostScript, Pillow would run Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF", "JPEG2000", "TGA", "ICO")
# Formats of phones, each with the module that must be installed.
AVIF = importlib.util.find_spec("PIL.AvifImagePlugin") is not None
HEIF = importlib.util.find_spec("pillow_heif") is not None
HEIF_HINT = "; `pip install pillow-heif` makes .heic and .heif readable"
# Endings of the files that are used as images, and how messages name them.
EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"}
EXTENSIONS |= ({".avif"} if AVIF else set()) | ({".heic", ".heif"} if HEIF else set())
IMAGE_ENDINGS = ", ".join(sorted(EXTENSIONS)) + ("" if HEIF else HEIF_HINT)
# Errors about a file itself; those of Pillow's decoders have no number. Any other, such as too many
# open files or a stale handle of a network disk, says nothing about the image and ends the run.
ABOUT_THE_FILE = {None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL}
# The most that decoded images take unless dataset.cache_gb says otherwise: the paper's largest
# sample, ImageNet's 16,000 images of 500 x 375 pixels, takes 12 GB.
MOST_CACHED_BYTES = 16 * 10**9


class Example(NamedTuple):
    """One image: its path relative to the dataset's root, and its class index."""

    path: str
    label: int


def by_label(examples: Iterable[Example]) -> list[list[Example]]:
    """Return the examples of each class, in the order in which the classes first appear."""
    groups: dict[int, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.label, []).append(example)
    return list(groups.values())


class UnreadableImageError(UserError):
    """An image file that is missing or cannot be decoded."""


def free_memory() -> int:
    """Return the available memory in bytes, or the limit of this container or job if lower."""
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(next(x for x in lines if x.startswith("MemAvailable:")).split()[1])
        group = pathlib.Path("/proc/self/cgroup").read_text().rpartition("0::/")[2].strip()
    except (OSError, StopIteration):  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    root = pathlib.Path("/sys/fs/cgroup")
    for folder in (root / group, *(root / group).parents):
        with contextlib.suppress(OSError, ValueError):  # "max" without a limit
            free = min(free, int((folder / "memory.max").read_text()))
    return free


class ImageCache:
    """Decoded images up to a limit in bytes, for all runs of a process.

    When it is full, another dataset empties it, but not the current one: an LRU cache would never
    hit when a dataset larger than the cache is read in order.
    """

    def __init__(self, limit: int | None = None) -> None:
        """Create an empty cache, by default of at most half of the free memory."""
        self.default = min(free_memory() // 2, MOST_CACHED_BYTES) if limit is None else limit
        self.limit = self.default
        self._bytes = 0
        self._images: dict[Hashable, Image.Image] = {}
        self._user: object = None
        self._lock = threading.Lock()  # loader threads share the cache

    def get(self, key: Hashable, user: object, decode: Callable[[], Image.Image]) -> Image.Image:
        """Return the image of a key, decoded if it is not cached. user: the dataset in use."""
        if (image := self._images.get(key)) is not None:
            return image
        image = decode()
        size = 4 * image.width * image.height  # PIL pads RGB to four bytes
        with self._lock:
            if user is not self._user and self._bytes + size > self.limit:
                self._images.clear()
                self._bytes = 0
            self._user = user
            if key not in self._images and self._bytes + size <= self.limit:
                self._images[key] = image
                self._bytes += size
        return image


cache = ImageCache()


class Source(abc.ABC):
    """Reads a dataset's images by their path, through the cache of decoded images."""

    def __call__(self, path: str) -> Image.Image:
        """Return an image as RGB, not to be changed in place, or raise UnreadableImageError."""
        return cache.get(self.key(path), self, lambda: self.read(path))

    @abc.abstractmethod
    def key(self, path: str) -> Hashable:
        """Return what identifies an image and changes with its file."""

    @abc.abstractmethod
    def read(self, path: str) -> Image.Image:
        """Decode an image."""


@dataclasses.dataclass(frozen=True)
class Files(Source):
    """Reads image files below a folder.  upright: whether a camera's orientation tag is applied."""

    root: epath.Path
    upright: bool = True

    def file(self, path: str) -> epath.Path:
        """Return the file of a path. A path that is absolute, or in a bucket, stays as it is."""
        return as_path(path) if is_remote(path) else self.root / path

    def key(self, path: str) -> Hashable:
        file, state = self.file(path), None
        with contextlib.suppress(OSError):
            if not is_remote(file):
                found = os.stat(file)  # copying can preserve mtime, but not ctime
                state = found.st_size, found.st_mtime_ns, found.st_ctime_ns
        return str(file), self.upright, state

    def read(self, path: str) -> Image.Image:
        return read_image(self.file(path), upright=self.upright)


class Dataset(NamedTuple):
    """Images of C classes: whole splits or, from load_dataset, with the few-shot sample.

    From load_dataset, `digest` is of all classes and images, not only those in the sample.
    """

    read: Source
    classnames: tuple[str, ...]  # of the labels, in order
    train: list[Example]
    val: list[Example]  # may be empty
    test: list[Example]  # always the whole split
    digest: str = ""
    split: str = ""  # CSV list of the images and their split, "" if their folders define it


def contents(root: epath.Path, paths: Sequence[str]) -> list[Hashable]:
    """Return a key for each file, which only files with the same bytes share.

    Only files of the same size are read. Files in a bucket are not, and count as different.
    """
    if is_remote(root):
        return list(paths)
    files = [root / path for path in paths]
    sizes = [os.stat(file).st_size if os.path.exists(file) else None for file in files]
    count = collections.Counter(sizes)
    found: list[Hashable] = []
    for path, file, size in zip(paths, files, sizes, strict=True):
        with reading(file, "a file"):
            alone = size is None or count[size] == 1
            found.append(path if alone else hashlib.sha256(file.read_bytes()).digest())
    return found


def read_image(
    file: str | os.PathLike[str] | BinaryIO, name: str = "", upright: bool = True
) -> Image.Image:
    """Return an image as RGB, see `to_rgb`; errors as for `opened`."""
    with opened(file, name) as image:
        return to_rgb(image, upright)


@contextlib.contextmanager
def opened(file: str | os.PathLike[str] | BinaryIO, name: str = "") -> Iterator[Image.Image]:
    """Open an image and read only its header. name: what messages call an open file.

    Raise UnreadableImageError about the file, and UserError for any other reason.
    """
    name = name or str(file)
    try:
        if isinstance(file, str | os.PathLike) and is_remote(file):
            try:
                file = io.BytesIO(as_path(file).read_bytes())
            except FileNotFoundError:
                raise
            except Exception as reason:  # of gcsfs, and not about the image
                raise UserError(f"{file} cannot be read ({reason}).") from reason
        with Image.open(file, formats=_formats()) as image:
            yield image
    except UserError:
        raise
    except FileNotFoundError as reason:
        raise UnreadableImageError(f"{name} does not exist.") from reason
    except Exception as reason:  # PIL's decoders raise any type
        no_memory = isinstance(reason, MemoryError)
        if no_memory or getattr(reason, "errno", None) not in ABOUT_THE_FILE:
            raise UserError(
                f"{name} cannot be read ({'not enough memory' if no_memory else reason}); the "
                "image is not the cause: resolve this and run the same command again."
            ) from reason
        hint = "" if HEIF or not name.lower().endswith((".heic", ".heif")) else HEIF_HINT
        raise UnreadableImageError(
            f"{name} cannot be read as an image ({reason}){hint}."
        ) from reason


def _formats() -> tuple[str, ...]:
    """Return the formats that are opened, and prepare Pillow for those of phones."""
    if HEIF:
        importlib.import_module("pillow_heif").register_heif_opener()
    return (*FORMATS, *(("AVIF",) if AVIF else ()), *(("HEIF",) if HEIF else ()))


def to_rgb(image: Image.Image, upright: bool = True) -> Image.Image:
    """Return an image of any mode as RGB, without transparency.

    16-bit pixels, which PIL would clip at 255, are scaled to 8 bits. `upright` applies a camera's
    orientation tag, which the published code ignores.
    """
    # Some versions of PIL return 16-bit greys of PNG and PPM as 32-bit numbers from 0 to 65535.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        image = _deep_grey(image)
    elif image.mode in ("I", "F"):
        raise ValueError(
            f"its pixels are of mode {image.mode}, whose white is not specified: save it with 8 or "
            "16 bits a pixel"
        )
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # a direct conversion of a transparency table warns
    elif image.mode in ("RGBa", "La"):
        image = image.convert(image.mode.upper())
    rgb = image.convert("RGB")
    if upright:
        try:
            ImageOps.exif_transpose(rgb, in_place=True)
        except MemoryError:
            raise
        except Exception:  # damaged tags, as some cameras write them, raise any type
            pass
    return rgb


def _deep_grey(image: Image.Image) -> Image.Image:
    """Return a 16-bit grey image with 8 bits. A TIFF may have 12 bits, or 0 for white."""
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    (bits,) = tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))
    step = (2**bits - 1) / 255
    grey = image.convert("I").point(lambda value: value / step).convert("L")
    inverted = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    return ImageOps.invert(grey) if inverted else grey
