"""What stands in a folder of images. Names that begin with a dot are never images."""

import collections
import os
from collections.abc import Iterable, Iterator

from etils import epath

from dpt_jax.errors import UserError
from dpt_jax.io import entries
from dpt_jax.runtime.bucket import Entry

EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"}


def visible(folder: epath.Path, dangling: bool = True) -> list[Entry]:
    """Return what is in a folder, sorted by name, without names that begin with a dot.

    Such names are a system's own: a Mac's `._x.png` beside x.png is no image. dangling: see
    `entries`. Raise UserError where the folder cannot be listed.
    """
    try:
        found = entries(folder, dangling)
        return sorted(entry for entry in found if not entry.name.startswith("."))
    except OSError as reason:
        raise UserError(f"{folder} cannot be listed ({reason}).") from reason


def is_image_name(name: str) -> bool:
    """Return whether a name is that of an image, by its ending."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def image_names(folder: epath.Path) -> list[str]:
    """Return the names of the images in a folder, sorted. Raise UserError where there are none."""
    found = (
        [name for name, is_folder in visible(folder) if not is_folder and is_image_name(name)]
        if folder.is_dir()
        else []
    )
    if not found:
        raise UserError(
            f"{folder} holds no images ({', '.join(sorted(EXTENSIONS))}); "
            "add some or remove the folder."
        )
    return found


def walk(folder: epath.Path) -> Iterator[epath.Path]:
    """Yield the files below a folder, at any depth, in the order of their names.

    A link to a folder is not followed, since it may lead back up, but is itself among them.
    """
    subfolders = []
    for name, is_folder in visible(folder):
        if is_folder and not os.path.islink(folder / name):
            subfolders.append(folder / name)
        else:
            yield folder / name
    for subfolder in subfolders:
        yield from walk(subfolder)


def endings(files: Iterable[str]) -> str:
    """Return how many files have which ending, "other" for none: "3 .heic, 1 .txt"."""
    count = collections.Counter(os.path.splitext(file)[1].lower() or "other" for file in files)
    return ", ".join(f"{n} {ending}" for ending, n in sorted(count.items()))
