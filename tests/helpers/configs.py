"""Settings of a method on the small images and the small CLIP."""

import pathlib
import shutil

from ml_collections import ConfigDict

from configs import dpt
from tests.helpers.golden import SMALL

IMAGES = SMALL / "images"


def small_config(clip_dir: pathlib.Path, method=dpt, **values) -> ConfigDict:
    """Return the configuration of configs/METHOD.py:folder.  values: other keys, __ for dots."""
    config = method.get_config("folder")
    config.clip.weights, config.dataset.root = str(clip_dir), str(IMAGES)
    own = {key.replace("__", "."): value for key, value in values.items()}
    config.update_from_flattened_dict(own)
    return config


def flags_of(**values) -> list[str]:
    """Return the flags that set keys of a configuration, __ for dots."""
    return [f"--config.{key.replace('__', '.')}={value}" for key, value in values.items()]


def small_flags(clip_dir: object, **values) -> list[str]:
    """Return the same as flags of a command whose --config names the method."""
    return flags_of(**{"clip__weights": clip_dir, "dataset__root": IMAGES, **values})


def small_splits(root: pathlib.Path, **sources: str) -> pathlib.Path:
    """Write the small images below `root`.  sources: the original split of each new one."""
    for split, source in sources.items():
        shutil.copytree(IMAGES / source, root / split)
    return root
