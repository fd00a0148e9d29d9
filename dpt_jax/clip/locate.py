"""Where weights are: bundled, in a path, in a bucket, or on the Hugging Face hub."""

import pathlib
import re
from collections.abc import Collection
from typing import cast

from etils import epath

from dpt_jax.clip import open_clip, transformers_config
from dpt_jax.clip.config import read_json
from dpt_jax.clip.files import INDEX, shards_of
from dpt_jax.clip.openai import HUB_IDS
from dpt_jax.clip.tokenizer import VOCABULARY_FILES
from dpt_jax.errors import UserError
from dpt_jax.io import as_path, is_remote, listed_once, local_copy, short
from dpt_jax.logging import say

BUNDLED = pathlib.Path(__file__).parent.parent / "assets"
ORBAX_FOLDER = "params"
TRANSFORMERS_FILES = (
    "model.safetensors",
    f"model.safetensors{INDEX}",
    "flax_model.msgpack",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX}",
)
OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
SMALL_FILES = (
    transformers_config.CONFIG_FILE,
    open_clip.CONFIG_FILE,
    *transformers_config.PROCESSOR_FILES,
    *VOCABULARY_FILES,
    *(name for name in TRANSFORMERS_FILES if name.endswith(INDEX)),
)
HUB_SECONDS = 20  # until the hub answers
# Endings of files, which no id on the hub has.
_FILE_ENDINGS = (".pt", ".pth", ".bin", ".safetensors", ".msgpack", ".json", ".ckpt")


def locate(weights: str) -> epath.Path:
    """Return the local path of a `clip.weights` value; remote files are copied to a cache.

    Raises:
      UserError: if nothing is found. It suggests the likely hub id, if there is one.
    """
    if not weights.strip():
        raise UserError("clip.weights is empty: name a hub id, a directory, or a weight file.")
    if re.fullmatch(r"[\w-]+", weights) and (BUNDLED / weights / "config.json").exists():
        return cast(epath.Path, BUNDLED / weights)
    if weights.startswith(("hf-hub:", "local-dir:")):
        _, _, name = weights.partition(":")
        raise UserError(f"clip.weights: {weights} is open_clip's spelling: write {name}.")
    path = as_path(weights)
    if is_remote(path):
        with listed_once(path):
            return _from_bucket(path)
    if path.exists():
        return path
    _refuse_model_name(weights)
    is_id = re.fullmatch(r"[\w.-]+/[\w.-]+", weights) and not weights.startswith(".")
    if not is_id or weights.endswith(_FILE_ENDINGS):
        raise UserError(
            f"clip.weights: {weights} is neither a file or directory nor an id on the Hugging Face "
            "hub."
        )
    return cast(epath.Path, _from_hub(weights))


def _refuse_model_name(weights: str) -> None:
    """Raise UserError for the name of a model of OpenAI's package or of open_clip."""
    if re.fullmatch(r"RN\d+(x\d+)?(-quickgelu)?", weights):
        raise UserError(
            f"clip.weights: {weights} has a ResNet image tower; only ViT image towers take prompts."
        )
    name = re.sub(r"^(ViT-\w+)[-/]", r"\1/", weights).removesuffix("-quickgelu")
    if hub_id := HUB_IDS.get(name.replace("14-336", "14@336px")):
        raise UserError(
            f"clip.weights: {weights} is the name of an architecture: write {hub_id} for OpenAI's "
            "weights of it, or the hub id of others."
        )
    if re.fullmatch(r"(ViT|coca|EVA\d*|MobileCLIP\d*|convnext|PE|ViTamin)[-_][\w@-]+", weights):
        raise UserError(
            f"clip.weights: {weights} is the name of an architecture: name weights of it by a hub "
            "id (laion/…, timm/…) or a path."
        )


def _from_hub(repo_id: str) -> pathlib.Path:
    """Return the local snapshot of a hub repository: its weights and small files."""
    import huggingface_hub

    try:
        # One request without repetitions: without a network, it fails at once.
        found = huggingface_hub.HfApi().model_info(repo_id, timeout=HUB_SECONDS)
        there = [file.rfilename for file in found.siblings or ()]
        # The small files first: they say which of the weight files is a CLIP's.
        folder = huggingface_hub.snapshot_download(repo_id, allow_patterns=list(SMALL_FILES))
        names = [*SMALL_FILES, *_weight_names(cast(epath.Path, pathlib.Path(folder)), there)]
        return pathlib.Path(huggingface_hub.snapshot_download(repo_id, allow_patterns=names))
    except UserError:
        raise
    except Exception as reason:  # no network, no such repository, a proxy's answer: many types
        try:
            return pathlib.Path(huggingface_hub.snapshot_download(repo_id, local_files_only=True))
        except Exception:
            raise UserError(
                f"clip.weights: {repo_id} is neither cached nor can it be downloaded from the "
                f"Hugging Face hub ({type(reason).__name__}: {short(reason)}): check the name and "
                "the network; or take tiny-clip, which is bundled; or run `hf download "
                f"{repo_id} --local-dir clip` where there is a network, copy that folder here, and "
                "name it as the weights."
            ) from reason


def _from_bucket(path: epath.Path) -> epath.Path:
    """Return the local copy of a model folder or weight file in a bucket."""
    if is_orbax(path):
        return cast(epath.Path, local_copy(path, lambda name: True, say))
    if path.is_dir():
        source = find_weights(path)
    elif path.is_file():
        source = path
    else:
        raise UserError(f"clip.weights: {path} does not exist: name a folder or a weight file.")
    names = {*SMALL_FILES, source.name, *_weight_names(source.parent, [source.name])}
    folder = local_copy(source.parent, names.__contains__, say)
    return cast(epath.Path, folder if source != path else folder / source.name)


def is_orbax(path: epath.Path) -> bool:
    """Return whether a path is an Orbax folder of a CLIP."""
    return path.is_dir() and (path / ORBAX_FOLDER).exists()


def find_weights(folder: epath.Path) -> epath.Path:
    """Return the weight file, or the index of several, of a model folder."""
    names = _candidates(folder)
    found = next((folder / name for name in names if (folder / name).exists()), None)
    if found is None:
        has = (
            "only weights of TensorFlow (tf_model.h5)" if (folder / "tf_model.h5").exists() else ""
        )
        raise UserError(f"{folder} has {has or 'no CLIP weights'}; it needs {', '.join(names)}.")
    return found


def _weight_names(folder: epath.Path, there: Collection[str]) -> list[str]:
    """Return the weight files of a model. `folder` has its small files."""
    name = next((name for name in _candidates(folder) if name in there), None)
    if name is None:
        return []
    return sorted(shards_of(folder / name)) if name.endswith(INDEX) else [name]


def _candidates(folder: epath.Path) -> tuple[str, ...]:
    """Return the names of weight files in order of preference.

    Repositories of timm have only the image tower in transformers' files, and say so in
    config.json.
    """
    config = folder / transformers_config.CONFIG_FILE
    if not (folder / open_clip.CONFIG_FILE).exists():
        return TRANSFORMERS_FILES + OPEN_CLIP_FILES
    if not config.exists():
        return OPEN_CLIP_FILES + TRANSFORMERS_FILES
    if read_json(config).get("model_type") != "clip":
        return OPEN_CLIP_FILES
    return TRANSFORMERS_FILES + OPEN_CLIP_FILES
