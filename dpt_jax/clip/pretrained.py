"""CLIP weights: locate them in any supported source, read, check and write them.

A source is a bundled model, a path, a folder in a bucket, or a repository on the Hugging Face hub.
"""

import contextlib
import fnmatch
import hashlib
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import flax.traverse_util
import jax.numpy as jnp
import numpy as np
from etils import epath

from dpt_jax.clip.blocks import Params
from dpt_jax.clip.config import (
    CONFIG_FILE,
    OPEN_CLIP_CONFIG,
    OPENAI_MODELS,
    PROCESSOR_FILES,
    CLIPConfig,
    config_to_dict,
    open_clip_to_dict,
    processor_to_dict,
    read_json,
    read_open_clip,
    read_transformers,
)
from dpt_jax.clip.files import (
    INDEX,
    OPENAI,
    Tensors,
    params_of,
    read_tensors,
    tensors_of,
    write_safetensors,
)
from dpt_jax.clip.model import param_shapes
from dpt_jax.clip.tokenizer import TOKENIZER_FILE, VOCABULARY_FILES, Tokenizer, load_tokenizer
from dpt_jax.errors import UserError
from dpt_jax.io import (
    ASSETS,
    as_path,
    is_remote,
    local_copy,
    make_folder,
    reading,
    short,
    without_wildcards,
    write_whole,
)
from dpt_jax.logging import say

ORBAX_FOLDER = "params"
WEIGHTS = "model.safetensors"
TRANSFORMERS_FILES = tuple(
    name + index for name in (WEIGHTS, "pytorch_model.bin") for index in ("", INDEX)
)
OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
SMALL_FILES = (CONFIG_FILE, OPEN_CLIP_CONFIG, *PROCESSOR_FILES, *VOCABULARY_FILES)
# OpenAI's names of its models, and their ids on the hub.
OPENAI_IDS = {
    "ViT-B/32": "openai/clip-vit-base-patch32",
    "ViT-B/16": "openai/clip-vit-base-patch16",
    "ViT-L/14": "openai/clip-vit-large-patch14",
    "ViT-L/14@336px": "openai/clip-vit-large-patch14-336",
}
HUB_SECONDS = 20  # to wait for the hub
EVERY = 97  # The digest of the weights takes every 97th value of a tensor.
# Layer norms compute in float32, and exp() of a rounded logarithm is off by percents.
FLOAT32 = re.compile(r"(.*/ln_\w+/\w+|logit_scale)$")


class Pretrained(NamedTuple):
    """A frozen CLIP on the host.

    Attributes:
      config: its sizes.
      params: its parameters, in float32 or a given type.
      tokenizer: tokenizer of its vocabulary.
      digest: identifies its weights among those of its sizes; "" if they are not from a file.
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
    file = path / ORBAX_FOLDER
    if file.exists():
        config, end = read_transformers(path / CONFIG_FILE)
        params = _read_orbax(path, config)
    else:
        file = _find_weights(path) if path.is_dir() else path
        tensors = read_tensors(file)
        config, end = _describe(file, tensors)
        params = params_of(tensors, config, file)
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    typed = {}
    for name, value in flat.items():
        if not np.isfinite(np.asarray(value, np.float32)).all():
            raise UserError(f"{file}: {name} has values that are not finite: get the file again.")
        typed[name] = np.asarray(value, np.float32 if FLOAT32.match(name) else dtype)
    tokenizer = load_tokenizer(file.parent, config.vocab_size, end)
    params = flax.traverse_util.unflatten_dict(typed, sep="/")
    return Pretrained(config, params, tokenizer, _digest(flat))


def locate(weights: str) -> epath.Path:
    """Return the local path of a `clip.weights` value; remote files are copied to a cache."""
    if re.fullmatch(r"[\w-]+", weights) and (ASSETS / weights / CONFIG_FILE).exists():
        return cast(epath.Path, ASSETS / weights)
    path = as_path(weights)
    if is_remote(path):
        return _from_bucket(path)
    return path if path.exists() else cast(epath.Path, _from_hub(weights))


def _from_hub(weights: str) -> pathlib.Path:
    """Return the local snapshot of a hub repository: its weights and small files."""
    import huggingface_hub

    repo_id = OPENAI_IDS.get(weights, weights)

    def snapshot(**options: Any) -> pathlib.Path:
        return pathlib.Path(huggingface_hub.snapshot_download(repo_id, **options))

    try:
        # One request without retries: without a network, it fails at once.
        found = huggingface_hub.HfApi().model_info(repo_id, timeout=HUB_SECONDS)
        there = {file.rfilename for file in found.siblings or ()}
        small = snapshot(allow_patterns=SMALL_FILES)
        file = next((name for name in _weight_files(small) if name in there), WEIGHTS)
        return snapshot(allow_patterns=_patterns(file))
    except Exception as reason:  # no id, no network, a proxy's answer: many types
        try:
            return snapshot(local_files_only=True)
        except Exception:
            raise UserError(
                f"clip.weights: {weights} is not a file, a folder or a cached repository of the "
                f"Hugging Face hub, and cannot be downloaded ({type(reason).__name__}: "
                f"{short(reason)}): check the name and the network; or use tiny-clip, which is "
                f"bundled; or run `hf download {repo_id} --local-dir clip` on a machine with a "
                "network, copy that folder here, and name it as the weights."
            ) from reason


def _from_bucket(path: epath.Path) -> epath.Path:
    """Return the local copy of a model folder or weight file in a bucket."""
    if (path / ORBAX_FOLDER).is_dir():
        return cast(epath.Path, local_copy(path, lambda name: True, say))
    source = path if path.is_file() else _find_weights(path)
    patterns = _patterns(source.name)
    folder = local_copy(
        source.parent, lambda name: any(fnmatch.fnmatch(name, one) for one in patterns), say
    )
    return cast(epath.Path, folder if source != path else folder / source.name)


def _patterns(weights: str) -> list[str]:
    """Return name patterns of the files that a model with this weight file needs."""
    stem, _, ending = weights.removesuffix(INDEX).rpartition(".")
    return [*SMALL_FILES, weights, f"{stem}-*-of-*.{ending}"]


def _weight_files(folder: epath.Path | pathlib.Path) -> tuple[str, ...]:
    """Return the names that a model folder's weight file may have, in order of preference."""
    # In timm's repositories, open_clip's files have the model, transformers' only the image tower.
    # A fine-tuned model may have been saved in transformers' layout into such a folder.
    config = cast(epath.Path, folder / CONFIG_FILE)
    if (folder / OPEN_CLIP_CONFIG).exists() and not (
        config.exists() and read_json(config).get("model_type") == "clip"
    ):
        return OPEN_CLIP_FILES + TRANSFORMERS_FILES
    return TRANSFORMERS_FILES + OPEN_CLIP_FILES


def _find_weights(folder: epath.Path) -> epath.Path:
    """Return the weight file, or the index of several, of a model folder."""
    names = _weight_files(folder)
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise UserError(f"{folder} has no CLIP weights; it needs {', '.join(names)}.")


def _describe(file: epath.Path, tensors: Tensors) -> tuple[CLIPConfig, int | None]:
    """Return what the configuration beside a weight file says, or OpenAI's if missing.

    If there are two, the file's name decides which layout it has.
    """
    readers = [(OPEN_CLIP_CONFIG, read_open_clip), (CONFIG_FILE, read_transformers)]
    if file.name in TRANSFORMERS_FILES:
        readers.reverse()
    for name, read in readers:
        if (file.parent / name).exists():
            return read(file.parent / name)
    return recognise(tensors, file), None


def recognise(tensors: Tensors, file: epath.Path) -> CLIPConfig:
    """Return the sizes of one of OpenAI's archives.  Raise UserError for other files.

    They do not state heads and activation, but store three sizes as tensors. A file without these
    may be a model of the same shapes with another activation.
    """
    shapes = {name: value.shape for name, value in tensors.items()}
    is_archive = {"input_resolution", "context_length", "vocab_size"} <= shapes.keys()
    for config in OPENAI_MODELS.values() if is_archive else ():
        width, patch = config.vision.width, config.patch_size
        expected = {
            "visual.conv1.weight": (width, 3, patch, patch),
            "visual.positional_embedding": (config.grid**2 + 1, width),
        }
        if expected.items() <= shapes.items():
            return config
    raise UserError(
        f"{file.parent / CONFIG_FILE} is missing, and so is {OPEN_CLIP_CONFIG}: {file.name} does "
        "not say the heads and the activation of its model, and is not an archive of OpenAI's "
        f"{', '.join(OPENAI_MODELS)}. Put either file beside it."
    )


def save_clip(clip: Pretrained, folder: epath.Path, layout: str = "transformers") -> None:
    """Write a model folder for load_clip, and transformers or open_clip.

    folder: a new one, local or in a bucket. layout: "transformers", "open_clip" or "orbax".
    """
    if folder.exists():
        raise UserError(f"{folder} already exists: choose a new folder, or delete it first.")
    make_folder(folder, "convert clip")
    config, tokenizer = clip.config, clip.tokenizer
    described = {
        CONFIG_FILE: config_to_dict(config, tokenizer.start, tokenizer.end),
        PROCESSOR_FILES[0]: processor_to_dict(config.preprocessing, config.image_size),
    }
    if layout == "open_clip":
        write_safetensors(folder / OPEN_CLIP_FILES[0], tensors_of(clip.params, config, OPENAI))
        described = {OPEN_CLIP_CONFIG: open_clip_to_dict(config)}
    elif layout == "orbax":
        with _orbax(folder) as (checkpointer, path):
            checkpointer.save(path, clip.params)
    else:
        write_safetensors(folder / WEIGHTS, tensors_of(clip.params, config))
    write_whole(folder / TOKENIZER_FILE, tokenizer.file)
    for file, content in described.items():
        write_whole(folder / file, json.dumps(content, indent=2))


@contextlib.contextmanager
def _orbax(folder: epath.Path) -> Iterator[tuple[Any, epath.Path]]:
    """Provide Orbax's checkpointer, and the path of a model folder's checkpoint as it takes it."""
    import orbax.checkpoint as ocp

    with without_wildcards(folder) as link, ocp.StandardCheckpointer() as checkpointer:
        yield checkpointer, link / ORBAX_FOLDER


def _read_orbax(folder: epath.Path, config: CLIPConfig) -> Params:
    """Return the parameters in an Orbax checkpoint.  Raise UserError for other names or shapes."""
    what = "a whole Orbax checkpoint of a CLIP"
    with reading(folder / ORBAX_FOLDER, what), _orbax(folder) as (checkpointer, path):
        params = checkpointer.restore(path)
        there, wanted = (
            {(name, x.shape) for name, x in flax.traverse_util.flatten_dict(tree, sep="/").items()}
            for tree in (params, param_shapes(config))
        )
        if different := there ^ wanted:
            raise ValueError(f"{min(different)[0]} does not have the shape that {CONFIG_FILE} says")
        return params


def _digest(params: dict[str, Any]) -> str:
    """Return a digest of flat parameters that does not depend on the type they are stored in.

    Training, or a merged adapter, changes all values of a tensor, so a sample of each is enough.
    """
    found = hashlib.sha256()
    for _, value in sorted(params.items()):
        some = np.asarray(value).reshape(-1)[::EVERY].astype(np.float32)
        found.update(some.astype(jnp.bfloat16).tobytes())
    return found.hexdigest()[:16]
