"""Learned weights of CLIP in other layouts: an adapted CLIP, and PEFT's LoRA files."""

import itertools
import json
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from dpt_jax.clip.blocks import Params
from dpt_jax.clip.config import CLIPConfig, read_json
from dpt_jax.clip.files import TRANSFORMERS, Tensors, read_tensors, write_safetensors
from dpt_jax.clip.pretrained import load_clip, save_clip
from dpt_jax.config import layer_range, validate
from dpt_jax.convert.reference import read_run, write_run
from dpt_jax.errors import UserError
from dpt_jax.io import as_path, make_folder, reading, write_whole
from dpt_jax.logging import say
from dpt_jax.methods import METHODS
from dpt_jax.prompts import LORA, Prompts
from dpt_jax.prompts.weights import MATRICES, merged, over
from dpt_jax.training.checkpoints import FOLDER, Saved, has_format
from dpt_jax.training.saved import check_same_clip, check_shapes, shapes_of
from dpt_jax.training.setup import make_model

ADAPTER_FILE, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
KEYS = {"vision": "image_layers", "text": "text_layers"}
# Fields of an adapter_config.json that change what its tensors mean, and their supported values.
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": ([], None),
    "lora_bias": (False, None),
    # Others, such as "pissa", change the frozen weights too.
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal", None),
}


def convert_clip(source: str, target: epath.Path, clip: str, layout: str) -> None:
    """Write a CLIP, or that of a run with its learned weights, in a layout.

    Args:
      source: A value of `clip.weights`, a workdir or a prompt file.
      target: A new folder, which is also a value of `clip.weights`.
      clip: Where the run's CLIP is, if it has moved.
      layout: "transformers", "open_clip" or "orbax".
    """
    if target.suffix == ".safetensors":
        raise UserError(f"{target} would be a folder: name it without .safetensors.")
    path = as_path(source)
    if not ((path / FOLDER).is_dir() or has_format(path)):
        save_clip(load_clip(source), target, layout)
        say(f"wrote {target}")
        return
    config, saved = _read(path)
    pretrained = load_clip(clip or config.clip.weights)
    check_same_clip(saved, pretrained, source)
    model = make_model(config, saved.meta.get("classnames") or ["any"], pretrained)
    own = {"weights": saved.prompts["weights"]}
    check_shapes(own, {"weights": shapes_of(model)["weights"]}, source)
    changes = merged(model.config.weights, pretrained.config, pretrained.params, own["weights"])
    params = jax.tree.map(np.asarray, over(pretrained.params, changes))
    save_clip(pretrained._replace(params=params), target, layout)
    say(f"wrote {target}, a CLIP with the weights of {source}{_without(saved.prompts)}")


def write_peft(source: epath.Path, target: epath.Path) -> None:
    """Write the low-rank changes of a run as PEFT's LoRA files, for transformers' CLIPModel."""
    config, saved = _read(source)
    weights = config.weights
    if weights.kind != LORA:
        raise UserError(
            f"{source} has learned layer norms, not low-rank changes: use `convert clip`."
        )
    tensors = {}
    for tower, own in saved.prompts["weights"].items():
        first, _ = layer_range(weights, KEYS[tower]) or (1, 0)
        for matrix, factors in own.items():
            for layer, (a, b) in enumerate(zip(factors["a"], factors["b"], strict=True), first - 1):
                module = _module(tower, layer, matrix)
                tensors[f"{module}.lora_A"], tensors[f"{module}.lora_B"] = a, b
    about = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": config.clip.weights,
        "inference_mode": True,
        "r": weights.rank,
        "lora_alpha": weights.alpha,
        "use_rslora": True,  # alpha / sqrt(r)
        "lora_dropout": weights.dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": sorted({name.rpartition(".")[0] for name in tensors}),
    }
    make_folder(target, "convert peft")
    named = {f"base_model.model.{name}.weight": x for name, x in tensors.items()}
    write_safetensors(target / ADAPTER_FILE, named)
    write_whole(target / ADAPTER_CONFIG, json.dumps(about, indent=2) + "\n")
    say(f"wrote {target}{_without(saved.prompts)}")


def read_peft(source: epath.Path, workdir: epath.Path, config: ConfigDict) -> None:
    """Write a workdir of CLIP-LoRA with the changes in PEFT's LoRA files.

    Args:
      source: A folder with adapter_config.json and adapter_model.safetensors.
      workdir: A new one.
      config: CLIP and dataset of the evaluation. What the files say is set here.

    Raises:
      UserError: The files hold other changes than those of attention's matrices, or do not fit
        CLIP.
    """
    with reading(source / ADAPTER_CONFIG, "a LoRA configuration of PEFT"):
        about = read_json(source / ADAPTER_CONFIG)
        for key, choices in SUPPORTED.items():
            if about.get(key, choices[0]) not in choices:
                raise ValueError(f"{key} is {about[key]!r}, which is not supported")
        rank, alpha = about.get("r", 8), about.get("lora_alpha", 8)
        alpha = float(alpha if about.get("use_rslora") else alpha / rank**0.5)
    pretrained = load_clip(config.clip.weights)
    changes = _from_peft(read_tensors(source / ADAPTER_FILE), pretrained.config, rank, source)
    learned = {matrix for own in changes.values() for matrix in own}
    # The files have nothing of what other methods learn.
    config.method, config.classifier.name = "cliplora", ""
    config.weights.update(
        kind=LORA,
        rank=rank,
        alpha=alpha,
        matrices="".join(letter for letter, name in MATRICES.items() if name in learned),
        **{key: "all" if tower in changes else "none" for tower, key in KEYS.items()},
    )
    validate(config)
    write_run(config, {"weights": changes}, pretrained, workdir, "LoRA files of PEFT")


def _from_peft(tensors: Tensors, clip: CLIPConfig, rank: int, source: epath.Path) -> Params:
    """Return the changes by tower and matrix, with zeros for layers that have none."""
    left = {
        name.removeprefix("base_model.model.").replace(".default.weight", ".weight"): value
        for name, value in tensors.items()
    }
    matrices = [m for m in MATRICES.values() if any(TRANSFORMERS[m] in name for name in left)]
    found: Params = {}
    for tower, sizes in (("vision", clip.vision), ("text", clip.text)):
        if not any(name.startswith(f"{tower}_model.") for name in left):
            continue
        shapes = {"a": (rank, sizes.width), "b": (sizes.width, rank)}
        found[tower] = {
            m: {x: np.zeros((sizes.layers, *shape), np.float32) for x, shape in shapes.items()}
            for m in matrices
        }
        for m, layer in itertools.product(matrices, range(sizes.layers)):
            names = {x: f"{_module(tower, layer, m)}.lora_{x.upper()}.weight" for x in shapes}
            if left.keys().isdisjoint(names.values()):
                continue
            for x, shape in shapes.items():
                value = left.pop(names[x], None)
                if value is None or value.shape != shape:
                    there = "missing" if value is None else value.shape
                    raise UserError(f"{source}: tensor {names[x]} is {there}, not {shape}.")
                found[tower][m][x][layer] = value
    if left or not found:
        raise UserError(
            f"{source}: tensor {min(left, default='of LoRA')} is not of a q, k, v or out "
            "projection of this CLIP."
        )
    return found


def _module(tower: str, layer: int, matrix: str) -> str:
    """Return the name of a projection (0-based layer) in transformers' CLIPModel."""
    blocks = TRANSFORMERS[f"{tower}/transformer/blocks"]
    return f"{blocks}{layer}.{TRANSFORMERS[matrix]}".removesuffix(".")


def _read(source: epath.Path) -> tuple[ConfigDict, Saved]:
    """Return settings and prompts of a run.  Raise UserError if it has no learned weights."""
    config, saved = read_run(source)
    if "weights" not in saved.prompts:
        raise UserError(
            f"{source}: {METHODS[config.method].label} does not change CLIP's weights, so there "
            "is no adapted CLIP to write."
        )
    return config, saved


def _without(prompts: Prompts) -> str:
    others = sorted(prompts.keys() - {"weights"})
    return f", without its {' and '.join(others)}" if others else ""
