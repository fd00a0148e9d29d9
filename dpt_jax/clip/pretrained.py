"""CLIP weights from any supported source: located, read, renamed and checked."""

import hashlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.traverse_util
import jax.numpy as jnp
import numpy as np
from etils import epath

from dpt_jax.clip import open_clip, openai, orbax, transformers_config
from dpt_jax.clip.blocks import Params
from dpt_jax.clip.config import CLIPConfig, Description
from dpt_jax.clip.files import read_tensors
from dpt_jax.clip.layouts import params_of, refuse_other_models
from dpt_jax.clip.locate import (
    BUNDLED,
    OPEN_CLIP_FILES,
    TRANSFORMERS_FILES,
    find_weights,
    is_orbax,
    locate,
)
from dpt_jax.clip.tokenizer import Tokenizer, load_tokenizer
from dpt_jax.errors import UserError
from dpt_jax.io import as_path, is_remote

__all__ = ["BUNDLED", "Pretrained", "load_clip", "save_orbax"]

EVERY = 97  # The digest of the weights takes every 97th value of a tensor.
# Layer norms compute in float32, and exp() of a rounded logarithm is off by percents.
FLOAT32 = re.compile(r"(.*/ln_\w+/\w+|logit_scale)$")


class Pretrained(NamedTuple):
    """A frozen CLIP on the host.

    Attributes:
      config: its sizes.
      params: its parameters, in float32 or a given type.
      tokenizer: of its vocabulary.
      digest: tells its weights from others of its sizes; "" if they are from no file.
    """

    config: CLIPConfig
    params: Params
    tokenizer: Tokenizer
    digest: str = ""


def load_clip(
    weights: str,
    dtype: Any = np.float32,
    accept: Callable[[CLIPConfig], object] = lambda config: None,
) -> Pretrained:
    """Load a CLIP with a ViT image tower.

    Args:
      weights: the name of a bundled model; a model folder of transformers or open_clip, local or
        gs://; a weight file, or the index of several, with the model's configuration beside it;
        one of OpenAI's .pt files; an Orbax folder of `convert clip`; or a Hugging Face hub id.
      dtype: of the parameters.
      accept: called with the sizes before the weights are read (after, if only they tell), to
        raise if they are of no use.

    Raises:
      UserError: naming the file, and the tensor or key that is missing or does not fit.
    """
    path = locate(weights)
    if is_orbax(path):
        described = transformers_config.read_description(path / transformers_config.CONFIG_FILE)
        accept(described.config)
        source, folder, params = path, path, orbax.read_params(path, described.config)
    else:
        source = find_weights(path) if path.is_dir() else path
        folder = source.parent
        described, params = _read_weights(source, accept)
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    for name, value in flat.items():
        if not np.isfinite(np.asarray(value, np.float32)).all():
            raise UserError(f"{source}: {name} has values that are not finite: get the file again.")
    cast = {
        name: np.asarray(x, np.float32 if FLOAT32.match(name) else dtype)
        for name, x in flat.items()
    }
    tokenizer = load_tokenizer(folder, described.config.vocab_size, described.end)
    params = flax.traverse_util.unflatten_dict(cast, sep="/")
    return Pretrained(described.config, params, tokenizer, _digest(flat))


def _read_weights(
    file: epath.Path, accept: Callable[[CLIPConfig], object]
) -> tuple[Description, Params]:
    described = _describe(file)
    if described is not None:
        accept(described.config)
    tensors = read_tensors(file)
    refuse_other_models(tensors, file)
    if described is None:
        if not openai.is_openai(tensors):
            raise UserError(
                f"{file.parent / transformers_config.CONFIG_FILE} is missing, and so is "
                f"{open_clip.CONFIG_FILE}: {file.name} does not say the heads and the activation "
                "of its model, so put one of the two beside it."
            )
        described = Description(openai.recognise(tensors, file), None)
        accept(described.config)
    return described, params_of(tensors, described.config, file)


def _describe(file: epath.Path) -> Description | None:
    """Return what the configuration beside a weight file says, None if there is none.

    If there are two, the file's name decides which layout it has.
    """
    readers: dict[str, Callable[[epath.Path], Description]] = {
        open_clip.CONFIG_FILE: open_clip.read_description,
        transformers_config.CONFIG_FILE: transformers_config.read_description,
    }
    names = list(readers)
    if file.name in TRANSFORMERS_FILES and file.name not in OPEN_CLIP_FILES:
        names.reverse()
    for name in names:
        if (file.parent / name).exists():
            return readers[name](file.parent / name)
    return None


def save_orbax(clip: Pretrained, directory: str) -> None:
    """Write an Orbax folder that load_clip reads.  Raise UserError if the folder exists."""
    target = as_path(directory)
    target = target if is_remote(target) else target.absolute()  # Orbax takes no relative path
    orbax.write(clip.config, clip.params, clip.tokenizer, target)


def _digest(params: dict[str, Any]) -> str:
    """Return a digest of flat parameters that does not depend on the type they are stored in.

    Training, or a merged adapter, changes all values of a tensor, so that some of each are enough.
    """
    found = hashlib.sha256()
    for _, value in sorted(params.items()):
        some = np.asarray(value).reshape(-1)[::EVERY].astype(np.float32)
        found.update(some.astype(jnp.bfloat16).tobytes())
    return found.hexdigest()[:16]
