"""A CLIP as an Orbax folder, which loads fast."""

from typing import Any

import flax.traverse_util
import jax
import numpy as np
from etils import epath

from dpt_jax.clip.config import CLIPConfig
from dpt_jax.clip.locate import ORBAX_FOLDER
from dpt_jax.clip.model import param_shapes
from dpt_jax.clip.tokenizer import Tokenizer
from dpt_jax.clip.transformers_config import write_configs
from dpt_jax.errors import UserError
from dpt_jax.io import reading, without_wildcards


def read_params(directory: epath.Path, config: CLIPConfig) -> Any:
    """Return the parameters in an Orbax folder.

    Raises:
      UserError: if a part is missing, or the parameters are not those of these sizes.
    """
    import orbax.checkpoint as ocp

    with (
        reading(directory, "a whole Orbax checkpoint of a CLIP"),
        without_wildcards(directory) as folder,
        ocp.StandardCheckpointer() as checkpointer,
    ):
        metadata = checkpointer.metadata(folder / ORBAX_FOLDER).item_metadata
        if metadata is None:
            raise UserError(f"{directory / ORBAX_FOLDER} is incomplete: copy the folder again.")
        there = metadata.tree
        _check_shapes(there, param_shapes(config), directory)
        wanted = jax.tree.map(lambda s: np.empty(s.shape, s.dtype), there)
        return jax.tree.map(np.asarray, checkpointer.restore(folder / ORBAX_FOLDER, wanted))


def _check_shapes(there: Any, wanted: Any, directory: epath.Path) -> None:
    """Raise UserError naming a parameter that is missing, left over or of another shape."""
    there, wanted = (flax.traverse_util.flatten_dict(t, sep="/") for t in (there, wanted))
    for name in sorted({*there, *wanted}):
        shapes = [tuple(tree[name].shape) if name in tree else None for tree in (there, wanted)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"{directory}: tensor {name} has shape {shapes[0]}, but its config.json asks for "
                f"{shapes[1]}."
            )


def write(config: CLIPConfig, params: Any, tokenizer: Tokenizer, target: epath.Path) -> None:
    """Write an Orbax folder, local or in a bucket.  Raise UserError if it exists."""
    import orbax.checkpoint as ocp

    if target.exists():
        raise UserError(f"{target} already exists: choose a new directory, or delete it first.")
    target.mkdir(parents=True)
    with without_wildcards(target) as folder, ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / ORBAX_FOLDER, params)
    write_configs(config, tokenizer, target)
