"""CLIP weights from wherever people have them, checked tensor by tensor."""

import hashlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.traverse_util
import jax.numpy as jnp
import numpy as np
from etils import epath

from dpt_jax.clip import open_clip, openai, orbax, transformers_config
from dpt_jax.clip.config import CLIPConfig, Description
from dpt_jax.clip.files import read_tensors
from dpt_jax.clip.layouts import common_names
from dpt_jax.clip.locate import (
    BUNDLED,
    OPEN_CLIP_FILES,
    TRANSFORMERS_FILES,
    find_weights,
    local_path,
    locate,
)
from dpt_jax.clip.names import from_transformers
from dpt_jax.clip.tokenizer import Tokenizer, load_tokenizer
from dpt_jax.errors import UserError

__all__ = ["BUNDLED", "Pretrained", "load_clip", "save_orbax"]

# Of so many values of a tensor, the digest of the weights takes one.
EVERY = 97


class Pretrained(NamedTuple):
    """A frozen CLIP on the host: sizes, float32 or given-dtype parameters, tokenizer.

    digest: what tells its weights from others of its sizes, "" where they are of no file.
    """

    config: CLIPConfig
    params: Any
    tokenizer: Tokenizer
    digest: str = ""


def load_clip(
    weights: str,
    dtype: Any = np.float32,
    accept: Callable[[CLIPConfig], object] = lambda config: None,
) -> Pretrained:
    """Load a CLIP ViT.

    weights: the name of a bundled model; a directory in the layout of
    transformers or open_clip; a weight file, or the index of several, with the
    model's configuration beside it; one of OpenAI's .pt files; an Orbax
    directory written by `convert clip`; or an id on the Hugging Face hub. dtype:
    what the parameters are cast to. accept: is shown the sizes before the weights
    are read (after, where only they tell), to raise where these are no use.

    Raise UserError naming the file and tensor where something does not fit.
    """
    path = locate(weights)
    if orbax.is_orbax(path):
        described, params = orbax.read(path, accept)
        source, folder = path / orbax.FOLDER, path
    else:
        source = find_weights(path) if path.is_dir() else path
        described, params = _read_weights(source, accept)
        folder = source.parent
    _check_finite(params, source)
    config = described.config
    tokenizer = load_tokenizer(folder, config.vocab_size, described.end)
    return Pretrained(config, _cast(params, dtype), tokenizer, digest_of(params))


def _read_weights(
    file: epath.Path, accept: Callable[[CLIPConfig], object]
) -> tuple[Description, Any]:
    described = _describe(file)
    if described is not None:
        accept(described.config)
    named = common_names(read_tensors(file), file)
    if described is None:
        if not named.openai:
            raise UserError(
                f"{file.parent / transformers_config.CONFIG_FILE} is missing, and so is "
                f"{open_clip.CONFIG_FILE}: {file.name} does not say the heads and the activation "
                "of its model, so put one of the two beside it."
            )
        described = Description(openai.recognise(named.tensors, file), None)
        accept(described.config)
    return described, from_transformers(named.tensors, described.config, file, named.spell)


def _describe(file: epath.Path) -> Description | None:
    """Return what the configuration beside a weight file says; None where there is none.

    Where there are two, the one of the layout that the file's name tells.
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
    """Write an Orbax directory that load_clip reads back, and read it back.

    Raise UserError where the directory is already there.
    """
    orbax.write(clip.config, clip.params, clip.tokenizer, local_path(directory).absolute())


def digest_of(params: Any) -> str:
    """Return what tells weights from others of their sizes, whatever type they are stored in.

    Training, or an adapter that is merged, changes all values of a tensor. So some of each tensor
    are enough, and take no time.
    """
    found = hashlib.sha256()
    for _, value in sorted(flax.traverse_util.flatten_dict(params, sep="/").items()):
        some = np.asarray(value).reshape(-1)[::EVERY].astype(np.float32)
        found.update(some.astype(jnp.bfloat16).tobytes())
    return found.hexdigest()[:16]


def _cast(params: Any, dtype: Any) -> Any:
    """Return the parameters in `dtype`, but for layer norm's and the temperature.

    Layer norm computes in float32, and exp() of a rounded logarithm is off by percents.
    """
    kept = re.compile(r"(.*/ln_\w+/\w+|logit_scale)$")
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    cast = {
        name: np.asarray(x, np.float32 if kept.match(name) else dtype) for name, x in flat.items()
    }
    return flax.traverse_util.unflatten_dict(cast, sep="/")


def _check_finite(params: Any, file: epath.Path) -> None:
    """Raise UserError naming a parameter that has NaN or infinity in it."""
    for name, value in flax.traverse_util.flatten_dict(params, sep=".").items():
        if not np.isfinite(np.asarray(value, np.float32)).all():
            raise UserError(
                f"{file}: {name} has values that are not finite: the file is damaged; get it again."
            )
