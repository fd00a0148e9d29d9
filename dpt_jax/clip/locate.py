"""Where the weights are that a name means: bundled, a path, or on the Hugging Face hub."""

import pathlib
import re
from typing import cast

from etils import epath

from dpt_jax.clip import open_clip, transformers_config
from dpt_jax.clip.files import INDEX
from dpt_jax.clip.json_files import read_json
from dpt_jax.clip.openai import HUB_IDS
from dpt_jax.clip.processors import PROCESSOR_FILES
from dpt_jax.clip.vocabulary import VOCABULARY_FILES
from dpt_jax.errors import UserError

BUNDLED = pathlib.Path(__file__).parent.parent / "assets"
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
    *PROCESSOR_FILES,
    *VOCABULARY_FILES,
    *(name for name in TRANSFORMERS_FILES if name.endswith(INDEX)),
)
# Endings of files that are no ids on the hub, however they look.
_FILE_ENDINGS = (".pt", ".pth", ".bin", ".safetensors", ".msgpack", ".json", ".ckpt")


def locate(weights: str) -> epath.Path:
    """Return the path on this disk that a `clip.weights` value means.

    Raise UserError, with the hub id that is likely meant where there is one.
    """
    if not weights.strip():
        raise UserError("clip.weights is empty: name a hub id, a directory, or a weight file.")
    if re.fullmatch(r"[\w-]+", weights) and (BUNDLED / weights / "config.json").exists():
        return local_path(BUNDLED / weights)
    if weights.startswith(("hf-hub:", "local-dir:")):
        _, _, name = weights.partition(":")
        raise UserError(f"clip.weights: {weights} is open_clip's spelling: write {name} here.")
    path = local_path(weights)
    if path.exists():
        return path
    _refuse_model_name(weights)
    looks_like_id = re.fullmatch(r"[\w.-]+/[\w.-]+", weights)
    if not looks_like_id or weights.startswith(".") or weights.endswith(_FILE_ENDINGS):
        raise UserError(
            f"clip.weights: {weights} is no file or directory here, and not an id on the Hugging "
            "Face hub."
        )
    return local_path(_from_hub(weights))


def local_path(name: str | pathlib.Path) -> epath.Path:
    """Return a path of this disk: pathlib's, which has the methods of epath's and more."""
    return cast(epath.Path, pathlib.Path(name).expanduser())


def _refuse_model_name(weights: str) -> None:
    """Raise UserError for the name of a model of OpenAI's package or of open_clip."""
    name = re.sub(r"^(RN\d+|ViT-\w+)[-/]", r"\1/", weights)
    if re.fullmatch(r"RN\d+(x\d+)?(-quickgelu)?", weights):
        raise UserError(
            f"clip.weights: {weights} has a ResNet image tower; only ViT image towers take prompts."
        )
    hub_id = HUB_IDS.get(name.removesuffix("-quickgelu").replace("14-336", "14@336px"))
    if hub_id:
        raise UserError(
            f"clip.weights: {weights} is the name of an architecture, whose weights by OpenAI are "
            f"{hub_id} on the Hugging Face hub: write that, or another id with its weights."
        )
    if re.fullmatch(r"(ViT|coca|EVA\d*|MobileCLIP\d*|convnext|PE|ViTamin)[-_][\w@-]+", weights):
        raise UserError(
            f"clip.weights: {weights} is the name of an architecture: name weights of it, as an id "
            "on the Hugging Face hub (laion/…, timm/…) or a path."
        )


def _from_hub(repo_id: str) -> str:
    """Return the local snapshot of a hub repository: the weights and the small files beside it."""
    import huggingface_hub

    try:
        there = huggingface_hub.HfApi().list_repo_files(repo_id)
        # The small files first: they say which of the weight files is a CLIP's.
        folder = huggingface_hub.snapshot_download(repo_id, allow_patterns=list(SMALL_FILES))
        weights = weight_names(local_path(folder), there)
        return huggingface_hub.snapshot_download(repo_id, allow_patterns=[*SMALL_FILES, *weights])
    except UserError:
        raise
    except Exception as reason:  # no network, no such repository, a proxy's answer: many types
        try:
            return huggingface_hub.snapshot_download(repo_id, local_files_only=True)
        except Exception:
            first_line = str(reason).strip().split("\n")[0]
            raise UserError(
                f"clip.weights: {repo_id} is neither on this disk nor to be had from the Hugging "
                f"Face hub ({type(reason).__name__}: {first_line}); check the name and the network,"
                " or give a local directory."
            ) from reason


def weight_names(folder: epath.Path, there: list[str]) -> list[str]:
    """Return the files of a repository that hold the weights of its CLIP."""
    name = next((name for name in _candidates(folder) if name in there), None)
    if name is None:
        return []
    if not name.endswith(INDEX):
        return [name]
    places = read_json(folder / name).section("weight_map").values
    return sorted({str(file) for file in places.values()})


def find_weights(folder: epath.Path) -> epath.Path:
    """Return the weight file, or the index of several, of a model folder."""
    names = _candidates(folder)
    for name in names:
        if (folder / name).exists():
            return folder / name
    other = next((name for name in ("tf_model.h5",) if (folder / name).exists()), None)
    has = f"weights of TensorFlow alone ({other})" if other else "no CLIP weights"
    raise UserError(f"{folder} has {has}: one of {', '.join(names)} is needed.")


def _candidates(folder: epath.Path) -> tuple[str, ...]:
    """Return the names of weight files in their order: open_clip's first where it is its folder.

    Repositories of timm have the image tower alone in transformers' files, and say so in
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
