"""CLIP's parameters as an Orbax checkpoint."""

import flax.traverse_util
import jax
import numpy as np
from etils import epath

from dpt_jax.clip.blocks import Params
from dpt_jax.clip.config import CLIPConfig
from dpt_jax.clip.model import param_shapes
from dpt_jax.io import is_remote, reading, without_wildcards


def read_params(checkpoint: epath.Path, config: CLIPConfig) -> Params:
    """Return the parameters in a checkpoint.

    Raises:
      UserError: if a part is missing, or a parameter does not have the shape that `config` gives.
    """
    import orbax.checkpoint as ocp

    checkpoint = _absolute(checkpoint)
    with (
        reading(checkpoint, "a whole Orbax checkpoint of a CLIP"),
        without_wildcards(checkpoint.parent) as folder,
        ocp.StandardCheckpointer() as checkpointer,
    ):
        metadata = checkpointer.metadata(folder / checkpoint.name).item_metadata
        if metadata is None:
            raise ValueError("it is incomplete")
        there, wanted = (
            {name: tuple(x.shape) for name, x in flax.traverse_util.flatten_dict(tree).items()}
            for tree in (metadata.tree, param_shapes(config))
        )
        for name in sorted(there.keys() | wanted.keys()):
            if there.get(name) != wanted.get(name):
                raise ValueError(
                    f"tensor {'/'.join(name)} has shape {there.get(name)}, but config.json asks "
                    f"for {wanted.get(name)}"
                )
        empty = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), metadata.tree)
        return jax.tree.map(np.asarray, checkpointer.restore(folder / checkpoint.name, empty))


def write_params(checkpoint: epath.Path, params: Params) -> None:
    """Write a checkpoint, local or in a bucket."""
    import orbax.checkpoint as ocp

    checkpoint = _absolute(checkpoint)
    with (
        without_wildcards(checkpoint.parent) as folder,
        ocp.StandardCheckpointer() as checkpointer,
    ):
        checkpointer.save(folder / checkpoint.name, params)


def _absolute(checkpoint: epath.Path) -> epath.Path:
    """Return a path that Orbax takes: it refuses relative ones."""
    return checkpoint if is_remote(checkpoint) else checkpoint.absolute()
