"""Images in folders, for training and for predict alike. Names that begin with a dot are hidden."""

import collections
import contextlib
import os
import sys
from collections.abc import Iterable, Iterator

from etils import epath

from dpt_jax.errors import UserError
from dpt_jax.io import entries, reading

EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"}


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
        raise no_images(folder)
    return names


def no_images(folder: epath.Path) -> UserError:
    """Return the error of a class folder without images."""
    return UserError(
        f"{folder} holds no images ({', '.join(sorted(EXTENSIONS))}); add some or remove the "
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
