"""Where weights are: bundled, in a path, in a bucket, or on the Hugging Face hub."""

import pathlib
import re
from collections.abc import Collection
from typing import cast

from etils import epath

from dpt_jax.clip.config import read_json
from dpt_jax.clip.config_files import CONFIG_FILE, OPEN_CLIP_CONFIG, PROCESSOR_FILES
from dpt_jax.clip.files import INDEX, shards_of
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
    CONFIG_FILE,
    OPEN_CLIP_CONFIG,
    *PROCESSOR_FILES,
    *VOCABULARY_FILES,
    *(name for name in TRANSFORMERS_FILES if name.endswith(INDEX)),
)
# OpenAI's names of its models, and their ids on the hub.
OPENAI_IDS = {
    "ViT-B/32": "openai/clip-vit-base-patch32",
    "ViT-B/16": "openai/clip-vit-base-patch16",
    "ViT-L/14": "openai/clip-vit-large-patch14",
    "ViT-L/14@336px": "openai/clip-vit-large-patch14-336",
}
HUB_SECONDS = 20  # until the hub answers
# Endings of files, which no id on the hub has.
_FILE_ENDINGS = (".pt", ".pth", ".bin", ".safetensors", ".msgpack", ".json", ".ckpt")


def locate(weights: str) -> epath.Path:
    """Return the local path of a `clip.weights` value; remote files are copied to a cache.

    Raises:
      UserError: if nothing is found.
    """
    if re.fullmatch(r"[\w-]+", weights) and (BUNDLED / weights / CONFIG_FILE).exists():
        return cast(epath.Path, BUNDLED / weights)
    path = as_path(weights)
    if is_remote(path):
        with listed_once(path):
            return _from_bucket(path)
    if path.exists():
        return path
    repo_id = OPENAI_IDS.get(weights, weights)
    is_id = re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id) and not repo_id.startswith(".")
    if not is_id or repo_id.endswith(_FILE_ENDINGS):
        raise UserError(
            f"clip.weights: {weights} is neither a file or folder, nor an id on the Hugging Face "
            f"hub such as {OPENAI_IDS['ViT-B/16']}."
        )
    return cast(epath.Path, _from_hub(repo_id))


def _from_hub(repo_id: str) -> pathlib.Path:
    """Return the local snapshot of a hub repository: its weights and small files."""
    import huggingface_hub

    try:
        # One request without repetitions: without a network, it fails at once.
        found = huggingface_hub.HfApi().model_info(repo_id, timeout=HUB_SECONDS)
        there = [file.rfilename for file in found.siblings or ()]
        # The small files first: they decide which weight file to download.
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
                "the network; or use tiny-clip, which is bundled; or run `hf download "
                f"{repo_id} --local-dir clip` on a machine with a network, copy that folder here, "
                "and name it as the weights."
            ) from reason


def _from_bucket(path: epath.Path) -> epath.Path:
    """Return the local copy of a model folder or weight file in a bucket."""
    if (path / ORBAX_FOLDER).is_dir():
        return cast(epath.Path, local_copy(path, lambda name: True, say))
    source = path if path.is_file() else find_weights(path)
    names = {*SMALL_FILES, source.name, *_weight_names(source.parent, [source.name])}
    folder = local_copy(source.parent, names.__contains__, say)
    return cast(epath.Path, folder if source != path else folder / source.name)


def find_weights(folder: epath.Path) -> epath.Path:
    """Return the weight file, or the index of several, of a model folder."""
    names = _candidates(folder)
    found = next((folder / name for name in names if (folder / name).exists()), None)
    if found is None:
        raise UserError(f"{folder} has no CLIP weights; it needs {', '.join(names)}.")
    return found


def _weight_names(folder: epath.Path, there: Collection[str]) -> list[str]:
    """Return the weight files of a model. `folder` has its small files."""
    name = next((name for name in _candidates(folder) if name in there), None)
    if name is None:
        return []
    return shards_of(folder / name) if name.endswith(INDEX) else [name]


def _candidates(folder: epath.Path) -> tuple[str, ...]:
    """Return the names of weight files in order of preference.

    Repositories of timm have only the image tower in transformers' files, and say so in
    config.json.
    """
    config = folder / CONFIG_FILE
    if not (folder / OPEN_CLIP_CONFIG).exists():
        return TRANSFORMERS_FILES + OPEN_CLIP_FILES
    if not config.exists():
        return OPEN_CLIP_FILES + TRANSFORMERS_FILES
    if read_json(config).get("model_type") != "clip":
        return OPEN_CLIP_FILES
    return TRANSFORMERS_FILES + OPEN_CLIP_FILES
