"""CLIP's weights from and to a bucket, for `dpt_jax.clip`, which knows this disk alone."""

import tempfile

from etils import epath

from dpt_jax.clip import orbax
from dpt_jax.clip.files import INDEX, SHARD
from dpt_jax.clip.locate import SMALL_FILES, find_weights, weight_names
from dpt_jax.clip.pretrained import load_clip, save_orbax
from dpt_jax.errors import UserError
from dpt_jax.io import as_path, entries, file_system, is_remote, listed_once, local_copy
from dpt_jax.logging import say


def local_weights(weights: str) -> str:
    """Return what `load_clip` reads: a `clip.weights` value, or the copy of one in a bucket.

    Raise UserError where the bucket has no such model.
    """
    if "://" not in weights:
        return weights
    path = as_path(weights)
    with listed_once(path):
        if orbax.is_orbax(path):
            return str(local_copy(path, lambda name: True, say))
        if path.is_dir():
            there = [name for name, is_folder in entries(path) if not is_folder]
            wanted = {*SMALL_FILES, *(weight_names(path, there) or [find_weights(path).name])}
            return str(local_copy(path, lambda name: name in wanted, say))
    if not path.is_file():
        raise UserError(f"clip.weights: {path} is not there: name a folder or a weight file.")
    return str(_file_and_its_like(path))


def _file_and_its_like(file: epath.Path) -> epath.PathLike:
    """Return a copy of a weight file, with the small files beside it; of an index, with all."""
    several = file.name.endswith(INDEX)

    def wanted(name: str) -> bool:
        return name in (*SMALL_FILES, file.name) or bool(several and SHARD.search(name))

    return local_copy(file.parent, wanted, say) / file.name


def convert_clip(weights: str, directory: str) -> None:
    """Write what `load_clip` reads as an Orbax directory, both local or gs://.

    Raise UserError where it cannot be read, or the directory is already there.
    """
    clip, target = load_clip(local_weights(weights)), as_path(directory)
    if not is_remote(target):
        save_orbax(clip, str(target.absolute()))
        return
    if target.exists():
        raise orbax.already_there(target)
    with tempfile.TemporaryDirectory(prefix="dpt_jax-") as disk:
        folder = as_path(disk) / target.name
        save_orbax(clip, str(folder))
        file_system(target).put(f"{folder}/", f"{target}/", recursive=True)
