"""A CLIP as an Orbax directory, which is read without torch."""

import json
from collections.abc import Callable
from typing import Any

import flax.traverse_util
import jax
import numpy as np
from etils import epath

from dpt_jax.clip.config import CLIPConfig, Description
from dpt_jax.clip.model import param_shapes
from dpt_jax.clip.processors import PROCESSOR_FILES, to_transformers
from dpt_jax.clip.tokenizer import Tokenizer
from dpt_jax.clip.transformers_config import CONFIG_FILE, config_to_dict, read_description
from dpt_jax.errors import UserError
from dpt_jax.io import without_wildcards

FOLDER = "params"


def is_orbax(path: epath.Path) -> bool:
    """Return whether a path is an Orbax directory of a CLIP."""
    return path.is_dir() and (path / FOLDER).exists()


def read(
    path: epath.Path, accept: Callable[[CLIPConfig], object] = lambda config: None
) -> tuple[Description, Any]:
    """Return the description and the parameters of an Orbax directory.

    accept: see load_clip. Raise UserError where a part is missing or does not fit.
    """
    described = read_description(path / CONFIG_FILE)
    accept(described.config)
    return described, _read_params(path / FOLDER, described.config)


def _read_params(directory: epath.Path, config: CLIPConfig) -> Any:
    import orbax.checkpoint as ocp

    shapes = param_shapes(config)
    with ocp.StandardCheckpointer() as checkpointer, without_wildcards(directory.parent) as folder:
        try:
            there = checkpointer.metadata(folder / FOLDER).item_metadata.tree
            _check_same_tree(there, shapes, directory)
            wanted = jax.tree.map(lambda s: np.empty(s.shape, s.dtype), there)
            return jax.tree.map(np.asarray, checkpointer.restore(folder / FOLDER, wanted))
        except (UserError, MemoryError):
            raise
        except Exception as reason:  # Orbax and its libraries have many types for a missing file
            first_line = str(reason).strip().split("\n")[0][:200]
            raise UserError(
                f"{directory} is not a whole Orbax checkpoint of a CLIP ({first_line}): a part of "
                "it may not have been copied."
            ) from reason


def _check_same_tree(there: Any, wanted: Any, directory: epath.Path) -> None:
    there, wanted = (flax.traverse_util.flatten_dict(t, sep="/") for t in (there, wanted))
    for name in sorted({*there, *wanted}):
        shapes = [tuple(t[name].shape) if name in t else None for t in (there, wanted)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"{directory}: tensor {name} has shape {shapes[0]}, but its config.json asks for "
                f"{shapes[1]}."
            )


def write(config: CLIPConfig, params: Any, tokenizer: Tokenizer, target: epath.Path) -> None:
    """Write an Orbax directory and read it back.

    Raise UserError where it is there already, or is not read back as it was written.
    """
    import orbax.checkpoint as ocp

    if target.exists():
        raise already_there(target)
    target.mkdir(parents=True)
    with without_wildcards(target) as folder, ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / FOLDER, params)
    raw = config_to_dict(config)
    special = {"bos_token_id": tokenizer.start, "eos_token_id": tokenizer.end}
    raw["text_config"] |= special | {"pad_token_id": tokenizer.end}
    (target / CONFIG_FILE).write_text(json.dumps(raw, indent=2))
    processor = to_transformers(config.preprocessing, config.image_size)
    (target / PROCESSOR_FILES[0]).write_text(json.dumps(processor, indent=2))
    for name, text in tokenizer.files.items():
        (target / name).write_text(text)
    _check_read_back(config, params, target)


def already_there(target: epath.Path) -> UserError:
    """Return the error for a directory that nothing is written over."""
    return UserError(f"{target} already exists: choose a new directory, or delete it first.")


def _check_read_back(config: CLIPConfig, params: Any, target: epath.Path) -> None:
    described, there = read(target)
    if described.config != config:
        raise UserError(f"{target}: config.json does not read back as it was written.")
    for written, found in zip(jax.tree.leaves(params), jax.tree.leaves(there), strict=True):
        if not np.array_equal(written, found):
            raise UserError(f"{target} does not read back as it was written: its disk is failing.")
