"""CLIP weights from any supported source: located, read, renamed and checked."""

import hashlib
import json
import re
from typing import Any, NamedTuple

import flax.traverse_util
import jax.numpy as jnp
import numpy as np
from etils import epath

from dpt_jax.clip import orbax
from dpt_jax.clip.blocks import Params
from dpt_jax.clip.config import OPENAI_MODELS, CLIPConfig
from dpt_jax.clip.config_files import (
    CONFIG_FILE,
    OPEN_CLIP_CONFIG,
    Description,
    open_clip_files,
    read_open_clip,
    read_transformers,
    transformers_files,
)
from dpt_jax.clip.files import Tensors, read_tensors, write_safetensors
from dpt_jax.clip.layouts import OPENAI, TRANSFORMERS, params_of, tensors_of
from dpt_jax.clip.locate import (
    BUNDLED,
    OPEN_CLIP_FILES,
    ORBAX_FOLDER,
    TRANSFORMERS_FILES,
    find_weights,
    locate,
)
from dpt_jax.clip.tokenizer import TOKENIZER_FILE, Tokenizer, load_tokenizer
from dpt_jax.errors import UserError
from dpt_jax.io import make_folder, write_whole

__all__ = ["BUNDLED", "Pretrained", "load_clip", "save_clip"]

EVERY = 97  # The digest of the weights takes every 97th value of a tensor.
# Layer norms compute in float32, and exp() of a rounded logarithm is off by percents.
FLOAT32 = re.compile(r"(.*/ln_\w+/\w+|logit_scale)$")


class Pretrained(NamedTuple):
    """A frozen CLIP on the host.

    Attributes:
      config: its sizes.
      params: its parameters, in float32 or a given type.
      tokenizer: tokenizer of its vocabulary.
      digest: tells its weights from others of its sizes; "" if they are from no file.
    """

    config: CLIPConfig
    params: Params
    tokenizer: Tokenizer
    digest: str = ""


def load_clip(weights: str, dtype: Any = np.float32) -> Pretrained:
    """Load a CLIP with a ViT image tower.

    Args:
      weights: the name of a bundled model or of one of OpenAI's; a model folder of transformers
        or open_clip, local or gs://; a weight file, or the index of several, with the model's
        configuration beside it; one of OpenAI's .pt files; an Orbax folder of `save_clip`; or a
        Hugging Face hub id.
      dtype: type of the parameters.

    Raises:
      UserError: naming the file, and the tensor or key that is missing or does not fit.
    """
    path = locate(weights)
    if (path / ORBAX_FOLDER).exists():
        file, described = path / ORBAX_FOLDER, read_transformers(path / CONFIG_FILE)
        params = orbax.read_params(file, described.config)
    else:
        file = find_weights(path) if path.is_dir() else path
        described, params = _read_file(file)
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    for name, value in flat.items():
        if not np.isfinite(np.asarray(value, np.float32)).all():
            raise UserError(f"{file}: {name} has values that are not finite: get the file again.")
    cast = {
        name: np.asarray(x, np.float32 if FLOAT32.match(name) else dtype)
        for name, x in flat.items()
    }
    tokenizer = load_tokenizer(file.parent, described.config.vocab_size, described.end)
    params = flax.traverse_util.unflatten_dict(cast, sep="/")
    return Pretrained(described.config, params, tokenizer, _digest(flat))


def _read_file(file: epath.Path) -> tuple[Description, Params]:
    """Return the description and the parameters of a weight file."""
    described = _describe(file)
    tensors = read_tensors(file)
    if described is None:
        described = Description(recognise(tensors, file), None)
    return described, params_of(tensors, described.config, file)


def _describe(file: epath.Path) -> Description | None:
    """Return the description in the configuration of a weight file, None if missing.

    If there are two, the file's name decides which layout it has.
    """
    readers = [(OPEN_CLIP_CONFIG, read_open_clip), (CONFIG_FILE, read_transformers)]
    if file.name in TRANSFORMERS_FILES and file.name not in OPEN_CLIP_FILES:
        readers.reverse()
    for name, read in readers:
        if (file.parent / name).exists():
            return read(file.parent / name)
    return None


def recognise(tensors: Tensors, file: epath.Path) -> CLIPConfig:
    """Return the sizes of one of OpenAI's archives. Raise UserError for other files.

    They do not say heads and activation, but store three sizes as tensors. Without these it may be
    a model of the same shapes with another activation.
    """
    if not {"input_resolution", "context_length", "vocab_size"} <= tensors.keys():
        raise UserError(
            f"{file.parent / CONFIG_FILE} is missing, and so is {OPEN_CLIP_CONFIG}: {file.name} "
            "does not say the heads and the activation of its model, so put one of the two beside "
            "it."
        )
    for config in OPENAI_MODELS.values():
        width, patch = config.vision.width, config.patch_size
        shapes = {
            "visual.conv1.weight": (width, 3, patch, patch),
            "visual.positional_embedding": (config.grid**2 + 1, width),
            "token_embedding.weight": (config.vocab_size, config.text.width),
        }
        if all(n in tensors and tensors[n].shape == shape for n, shape in shapes.items()):
            return config
    raise UserError(
        f"{file} is an archive like OpenAI's, but of none of its ViT models "
        f"({', '.join(OPENAI_MODELS)}): put the {OPEN_CLIP_CONFIG} of its model beside it."
    )


def save_clip(clip: Pretrained, folder: epath.Path, layout: str = "transformers") -> None:
    """Write a model folder that load_clip reads, and transformers or open_clip.

    Args:
      clip: the model.
      folder: a new one, local or in a bucket.
      layout: "transformers", "open_clip" or "orbax".

    Raises:
      UserError: if the folder exists.
    """
    if folder.exists():
        raise UserError(f"{folder} already exists: choose a new folder, or delete it first.")
    if layout == "open_clip":
        name, table = OPEN_CLIP_FILES[0], OPENAI
        files = open_clip_files(clip.config)
    else:
        name, table = TRANSFORMERS_FILES[0], TRANSFORMERS
        files = transformers_files(clip.config, clip.tokenizer)
    make_folder(folder, "convert clip")
    if layout == "orbax":
        orbax.write_params(folder / ORBAX_FOLDER, clip.params)
    else:
        write_safetensors(folder / name, tensors_of(clip.params, clip.config, table))
    write_whole(folder / TOKENIZER_FILE, clip.tokenizer.file)
    for file, content in files.items():
        write_whole(folder / file, json.dumps(content, indent=2))


def _digest(params: dict[str, Any]) -> str:
    """Return a digest of flat parameters that does not depend on the type they are stored in.

    Training, or a merged adapter, changes all values of a tensor, so that some of each are enough.
    """
    found = hashlib.sha256()
    for _, value in sorted(params.items()):
        some = np.asarray(value).reshape(-1)[::EVERY].astype(np.float32)
        found.update(some.astype(jnp.bfloat16).tobytes())
    return found.hexdigest()[:16]
