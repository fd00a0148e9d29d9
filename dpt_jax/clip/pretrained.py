"""CLIP weights from wherever people have them, checked tensor by tensor."""

import json
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import numpy as np
from etils import epath

from dpt_jax.clip.blocks import ACTIVATIONS
from dpt_jax.clip.config import CLIPConfig, TransformerConfig
from dpt_jax.clip.files import Tensors, read_tensors
from dpt_jax.clip.model import param_shapes
from dpt_jax.clip.names import from_transformers, openai_name, openai_to_transformers
from dpt_jax.clip.tokenizer import VOCABULARY_FILES, Tokenizer, load_tokenizer
from dpt_jax.errors import UserError

WEIGHT_FILES = ("model.safetensors", "flax_model.msgpack", "pytorch_model.bin")
ORBAX_FOLDER = "params"
# Those of transformers' CLIPConfig, whose import takes PyTorch with it where that is installed.
COMMON = {"num_hidden_layers": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
DEFAULTS: dict[str, dict[str, Any]] = {
    "text_config": {
        **COMMON,
        **{"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048},
        **{"vocab_size": 49408, "max_position_embeddings": 77},
    },
    "vision_config": {
        **COMMON,
        **{"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
        **{"image_size": 224, "patch_size": 32},
    },
}
BUNDLED = pathlib.Path(__file__).parent.parent / "assets"
# Not weights: index buffers of older transformers, sizes that OpenAI's archives repeat.
IGNORED = re.compile(r"(.*\.position_ids|input_resolution|context_length|vocab_size)$")


class Pretrained(NamedTuple):
    """A frozen CLIP on the host: sizes, float32 or given-dtype parameters, tokenizer."""

    config: CLIPConfig
    params: Any
    tokenizer: Tokenizer


def load_clip(
    weights: str,
    dtype: Any = np.float32,
    accept: Callable[[CLIPConfig], object] = lambda config: None,
) -> Pretrained:
    """Loads a CLIP ViT.

    weights: the name of a bundled model; a directory with config.json and
    model.safetensors, flax_model.msgpack or pytorch_model.bin; one of these
    files; one of OpenAI's .pt files; an Orbax directory written by
    `python -m dpt_jax.convert clip` (local or gs://); or an id on the Hugging
    Face hub. dtype: what the parameters are cast to. accept: is shown the sizes
    before the weights are read (after, where only they tell), to raise where
    these are no use.

    Raises UserError naming the file and tensor where something does not fit.
    """
    path = _locate(weights)
    if path.is_dir() and (path / ORBAX_FOLDER).exists():
        config = _config_from_file(path / "config.json")
        accept(config)
        params = _read_orbax(path / ORBAX_FOLDER, config)
        _check_finite(params, path / ORBAX_FOLDER)
        return Pretrained(config, _cast(params, dtype), load_tokenizer(path))
    file = _weight_file(path) if path.is_dir() else path
    config_file = file.parent / "config.json"
    if path.is_dir() and config_file.exists():
        accept(_config_from_file(config_file))
    tensors = {k: v for k, v in read_tensors(file).items() if not IGNORED.match(k)}
    spell: Callable[[str], str] = str
    if any(name.startswith("visual.") for name in tensors):
        tensors, spell = openai_to_transformers(tensors, file), openai_name
        config = _config_from_shapes(tensors, file)
    elif config_file.exists():
        config = _config_from_file(config_file)
    else:
        raise UserError(
            f"{config_file} is missing: it holds the sizes of the model in {file.name}; put it beside it."
        )
    accept(config)
    params = from_transformers(tensors, config, file, spell)
    _check_finite(params, file)
    return Pretrained(config, _cast(params, dtype), load_tokenizer(file.parent))


def save_orbax(clip: Pretrained, directory: str) -> None:
    """Writes an Orbax directory that load_clip reads back (local or gs://).

    Raises UserError where the directory is already there.
    """
    import orbax.checkpoint as ocp

    target = epath.Path(os.path.abspath(directory) if "://" not in directory else directory)
    if _exists(target):
        raise UserError(f"{target} already exists: choose a new directory, or delete it first.")
    target.mkdir(parents=True)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(target / ORBAX_FOLDER, clip.params)
    (target / "config.json").write_text(json.dumps(config_to_dict(clip.config), indent=2))
    for name, text in clip.tokenizer.files.items():
        (target / name).write_text(text)


def config_to_dict(config: CLIPConfig) -> dict[str, Any]:
    """The sizes as a config.json of transformers' CLIPModel."""

    def tower(part: TransformerConfig) -> dict[str, Any]:
        return {
            "hidden_size": part.width,
            "intermediate_size": part.mlp_width,
            "num_hidden_layers": part.layers,
            "num_attention_heads": part.heads,
            "hidden_act": part.activation,
            "layer_norm_eps": part.layer_norm_eps,
            "projection_dim": config.embed_dim,
        }

    end = config.vocab_size - 1
    text = {"vocab_size": config.vocab_size, "max_position_embeddings": config.context_length}
    special = {"bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
    vision = {"image_size": config.image_size, "patch_size": config.patch_size}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.embed_dim,
        "text_config": {"model_type": "clip_text_model", **tower(config.text), **text, **special},
        "vision_config": {"model_type": "clip_vision_model", **tower(config.vision), **vision},
    }


def _cast(params: Any, dtype: Any) -> Any:
    """The parameters in `dtype`, but those of layer norm, which computes in float32, and the temperature,
    since exp() of a rounded logarithm is off by percents."""
    kept = re.compile(r"(.*/ln_\w+/\w+|logit_scale)$")
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    cast = {
        name: np.asarray(x, np.float32 if kept.match(name) else dtype) for name, x in flat.items()
    }
    return flax.traverse_util.unflatten_dict(cast, sep="/")


def _locate(weights: str) -> epath.Path:
    """The local or remote path that a `clip.weights` value means."""
    if not weights:
        raise UserError("clip.weights is empty: name a hub id, a directory, or a weight file.")
    bundled = BUNDLED / weights
    if re.fullmatch(r"[\w-]+", weights) and (bundled / "config.json").exists():
        return epath.Path(bundled)
    path = epath.Path(weights)
    if _exists(path):
        return path
    looks_like_id = re.fullmatch(r"[\w.-]+/[\w.-]+", weights) and not weights.endswith(
        (".pt", ".bin", ".safetensors")
    )
    if not looks_like_id or weights.startswith("."):
        raise UserError(
            f"clip.weights: {weights} is no file or directory here, and not an id on the Hugging Face hub."
        )
    return epath.Path(_from_hub(weights))


def _exists(path: epath.Path) -> bool:
    try:
        return path.exists()
    except Exception as reason:  # each remote file system has its own types
        raise UserError(f"{path} cannot be reached ({reason}).") from reason


def _from_hub(repo_id: str) -> str:
    """The local snapshot of a hub repository: one weight file and the small files beside it."""
    import huggingface_hub

    small = ["config.json", *VOCABULARY_FILES]
    try:
        there = huggingface_hub.HfApi().list_repo_files(repo_id)
        weight = next((name for name in WEIGHT_FILES if name in there), None)
        return huggingface_hub.snapshot_download(
            repo_id, allow_patterns=[*small, *([weight] if weight else [])]
        )
    except Exception as reason:  # no network, no such repository, a proxy's answer: many types
        try:
            return huggingface_hub.snapshot_download(repo_id, local_files_only=True)
        except Exception:
            first_line = str(reason).strip().split("\n")[0]
            raise UserError(
                f"clip.weights: {repo_id} is neither on this disk nor to be had from the Hugging Face hub "
                f"({type(reason).__name__}: {first_line}); check the name and the network, or give a local directory."
            ) from reason


def _weight_file(directory: epath.Path) -> epath.Path:
    for name in WEIGHT_FILES:
        if (directory / name).exists():
            return directory / name
    raise UserError(f"{directory} has no CLIP weights: one of {', '.join(WEIGHT_FILES)} is needed.")


def _read_orbax(directory: epath.Path, config: CLIPConfig) -> Any:
    import orbax.checkpoint as ocp

    shapes = param_shapes(config)
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            there = checkpointer.metadata(directory).item_metadata.tree
            _check_same_tree(there, shapes, directory)
            wanted = jax.tree.map(lambda s: np.empty(s.shape, s.dtype), there)
            return jax.tree.map(np.asarray, checkpointer.restore(directory, wanted))
        except (OSError, ValueError, KeyError) as reason:
            raise UserError(
                f"{directory} is not a readable Orbax checkpoint of a CLIP ({reason})."
            ) from reason


def _check_finite(params: Any, file: epath.Path) -> None:
    """Raises UserError naming a parameter that has NaN or infinity in it."""
    for name, value in flax.traverse_util.flatten_dict(params, sep=".").items():
        if not np.isfinite(np.asarray(value, np.float32)).all():
            raise UserError(
                f"{file}: {name} has values that are not finite: the file is damaged; get it again."
            )


def _check_same_tree(there: Any, wanted: Any, directory: epath.Path) -> None:
    there, wanted = (flax.traverse_util.flatten_dict(t, sep="/") for t in (there, wanted))
    for name in sorted({*there, *wanted}):
        shapes = [tuple(t[name].shape) if name in t else None for t in (there, wanted)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"{directory}: tensor {name} has shape {shapes[0]}, but its config.json asks for {shapes[1]}."
            )


def _config_from_file(file: epath.Path) -> CLIPConfig:
    """Sizes from a config.json of transformers, missing keys as in its CLIPConfig."""
    try:
        raw = json.loads(file.read_text())
    except FileNotFoundError as reason:
        raise UserError(f"{file} is missing: it holds the sizes of the model.") from reason
    except ValueError as reason:
        raise UserError(f"{file} is not valid JSON ({reason}).") from reason
    kind = raw.get("model_type") if isinstance(raw, dict) else None
    if kind != "clip":
        raise UserError(
            f"{file} describes a model of type {kind!r}; only CLIP with a ViT image tower is supported."
        )

    def tower(part: str) -> dict[str, Any]:
        # Older files have a second copy of the part, which transformers lets win.
        own = raw.get(part) if raw.get(f"{part}_dict") is None else raw[f"{part}_dict"]
        sizes = {**DEFAULTS[part], **(own or {})}
        if sizes["hidden_act"] not in ACTIVATIONS:
            raise UserError(
                f"{file}: activation {sizes['hidden_act']!r} is not one of {', '.join(ACTIVATIONS)}."
            )
        return sizes

    def transformer(sizes: dict[str, Any]) -> TransformerConfig:
        return TransformerConfig(
            width=sizes["hidden_size"],
            layers=sizes["num_hidden_layers"],
            heads=sizes["num_attention_heads"],
            mlp_width=sizes["intermediate_size"],
            activation=sizes["hidden_act"],
            layer_norm_eps=sizes["layer_norm_eps"],
        )

    vision, text = tower("vision_config"), tower("text_config")
    return CLIPConfig(
        embed_dim=raw.get("projection_dim", 512),
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        vision=transformer(vision),
        text=transformer(text),
        vocab_size=text["vocab_size"],
        context_length=text["max_position_embeddings"],
    )


def _config_from_shapes(tensors: Tensors, file: epath.Path) -> CLIPConfig:
    """Sizes of one of OpenAI's models, whose heads are all 64 wide."""

    def shape(name: str, axes: int = 2) -> tuple[int, ...]:
        if name not in tensors:
            raise UserError(
                f"{file}: tensor {openai_name(name)} is missing; the file is incomplete or not a CLIP ViT."
            )
        if tensors[name].ndim != axes:
            raise UserError(
                f"{file}: tensor {openai_name(name)} has {tensors[name].ndim} axes instead of {axes}."
            )
        return tensors[name].shape

    def tower(name: str, width: int) -> TransformerConfig:
        layers = {
            int(m[1])
            for key in tensors
            if (m := re.match(rf"{name}_model\.encoder\.layers\.(\d+)\.", key))
        }
        mlp = shape(f"{name}_model.encoder.layers.0.mlp.fc1.weight")[0]
        return TransformerConfig(width, max(layers) + 1, width // 64, mlp)

    width, _, patch, _ = shape("vision_model.embeddings.patch_embedding.weight", axes=4)
    positions = shape("vision_model.embeddings.position_embedding.weight")[0]
    vocab, text_width = shape("text_model.embeddings.token_embedding.weight")
    return CLIPConfig(
        embed_dim=shape("text_projection.weight")[0],
        image_size=round((positions - 1) ** 0.5) * patch,
        patch_size=patch,
        vision=tower("vision", width),
        text=tower("text", text_width),
        vocab_size=vocab,
        context_length=shape("text_model.embeddings.position_embedding.weight")[0],
    )
