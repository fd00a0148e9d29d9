"""Learned weights of CLIP in other layouts: an adapted CLIP, and PEFT's LoRA files."""

import json

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from dpt_jax.clip.files import TRANSFORMERS, write_safetensors
from dpt_jax.clip.pretrained import load_clip, save_clip
from dpt_jax.config import layer_range
from dpt_jax.convert.reference import read_run
from dpt_jax.errors import UserError
from dpt_jax.io import as_path, make_folder, write_whole
from dpt_jax.logging import say
from dpt_jax.methods import METHODS
from dpt_jax.prompts import Prompts
from dpt_jax.prompts.config import LORA
from dpt_jax.prompts.weights import merged, over
from dpt_jax.training.checkpoints import FOLDER, Saved, has_format
from dpt_jax.training.initial_prompts import check_shapes, shapes_of
from dpt_jax.training.record import check_same_clip
from dpt_jax.training.setup import make_model

ADAPTER_FILE, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
KEYS = {"vision": "image_layers", "text": "text_layers"}


def convert_clip(source: str, target: epath.Path, clip: str, layout: str) -> None:
    """Write a CLIP, or that of a run with its learned weights, in a layout.

    Args:
      source: A value of `clip.weights`, a workdir or a prompt file.
      target: A new folder, which is also a value of `clip.weights`.
      clip: Where the run's CLIP is, if it has moved.
      layout: "transformers", "open_clip" or "orbax".

    Raises:
      UserError: The run has learned no weights, its CLIP is another one, or the folder exists.
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
    """Write the low-rank changes of a run as PEFT's LoRA files, for transformers' CLIPModel.

    Raises:
      UserError: The run has none.
    """
    config, saved = _read(source)
    weights = config.weights
    if weights.kind != LORA:
        raise UserError(
            f"{source} has learned layer norms, not low-rank changes: use `convert clip`."
        )
    tensors = {}
    for tower, own in saved.prompts["weights"].items():
        blocks = TRANSFORMERS[f"{tower}/transformer/blocks"]
        first, _ = layer_range(weights, KEYS[tower]) or (1, 0)
        for matrix, factors in own.items():
            for layer, (a, b) in enumerate(zip(factors["a"], factors["b"], strict=True), first - 1):
                module = f"{blocks}{layer}.{TRANSFORMERS[matrix]}".removesuffix(".")
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
