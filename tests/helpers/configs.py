"""Settings of a method on the small images and the small CLIP."""

import pathlib

from ml_collections import ConfigDict

from configs import dpt
from tests.helpers.golden import SMALL


def small_config(clip_dir: pathlib.Path, method=dpt, **values) -> ConfigDict:
    """Return what configs/METHOD.py:folder says.  values: other keys, with __ for their dots."""
    config = method.get_config("folder")
    config.clip.weights, config.dataset.root = str(clip_dir), str(SMALL / "images")
    for key, value in values.items():
        config.update_from_flattened_dict({key.replace("__", "."): value})
    return config
