"""Conversions of runs and CLIPs to the layouts of other code, and back.

Layouts: a CLIP with learned weights, PEFT's LoRA files, and checkpoints of the published code.
"""

import itertools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from dpt_jax import methods
from dpt_jax.clip.blocks import Params
from dpt_jax.clip.config import CLIPConfig, read_json
from dpt_jax.clip.files import (
    TRANSFORMERS,
    Tensors,
    read_tensors,
    write_safetensors,
    write_torch_file,
)
from dpt_jax.clip.pretrained import Pretrained, load_clip, save_clip
from dpt_jax.config import flat, layer_range, method_config, validate
from dpt_jax.convert import reference
from dpt_jax.errors import UserError
from dpt_jax.io import as_path, make_folder, reading, write_whole
from dpt_jax.logging import say
from dpt_jax.methods import METHODS, ZERO_SHOT
from dpt_jax.prompts import LORA, Prompts
from dpt_jax.prompts.text import context_tokens
from dpt_jax.prompts.weights import MATRICES, merged, over
from dpt_jax.training.checkpoints import FOLDER, Checkpoints, Saved, has_format, load_newest
from dpt_jax.training.saved import check_same_clip, check_shapes, result_settings, shapes_of
from dpt_jax.training.setup import clip_fingerprint, make_model
from dpt_jax.training.workdir import CONFIG_FILE, load_config, save_config

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
# Methods whose own code saves other tensors than DPT's code.
OF_OTHER_CODE = ("cocoop", "ivlp", "maple", "promptsrc")
# Settings that belong to the method of a checkpoint; others belong to CLIP and the data.
METHOD_SECTIONS = ("text_prompt.", "visual_prompt.", "cavpt.", "loss.")


def convert_clip(source: str, target: epath.Path, clip: str, layout: str) -> None:
    """Write a CLIP, or that of a run with its learned weights, in a layout.

    source: A value of `clip.weights`, a workdir or a prompt file. clip: Where the run's CLIP is, if
    it has moved. layout: See `save_clip`.
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
    tensors: Tensors = {}
    for tower, own in saved.prompts["weights"].items():
        first, _ = layer_range(weights, KEYS[tower]) or (1, 0)
        for matrix, factors in own.items():
            for i in range(len(factors["a"])):
                names = _names(tower, first - 1 + i, matrix)
                tensors |= {name: factors[factor][i] for factor, name in names.items()}
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
        "target_modules": sorted({name.partition(".lora_")[0] for name in tensors}),
    }
    make_folder(target, "convert peft")
    named = {f"base_model.model.{name}": x for name, x in tensors.items()}
    write_safetensors(target / ADAPTER_FILE, named)
    write_whole(target / ADAPTER_CONFIG, json.dumps(about, indent=2) + "\n")
    say(f"wrote {target}{_without(saved.prompts)}")


def read_peft(source: epath.Path, workdir: epath.Path, config: ConfigDict) -> None:
    """Write a workdir of CLIP-LoRA with the changes in PEFT's LoRA files.

    config: CLIP and dataset of the evaluation; its other values come from the files. Raise
    UserError if they hold other changes than those of attention's matrices, or do not fit CLIP.
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
            names = _names(tower, layer, m)
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


def _names(tower: str, layer: int, matrix: str) -> dict[str, str]:
    """Return the names of a matrix's factors in transformers' CLIPModel (0-based layer)."""
    module = f"{TRANSFORMERS[f'{tower}/transformer/blocks']}{layer}.{TRANSFORMERS[matrix]}"
    return {"a": f"{module}lora_A.weight", "b": f"{module}lora_B.weight"}


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


def convert_reference(
    directory: pathlib.Path, workdir: pathlib.Path, config: ConfigDict, overrides: Mapping[str, Any]
) -> None:
    """Write a workdir with the prompts of a checkpoint folder of published code.

    config: What a checkpoint does not hold. Its method and sizes are set here. overrides: The
    values on the command line, from which the checkpoint may not differ.
    """
    epoch, modules = reference.read_published(directory)
    prompts = reference.prompts_from_published(modules, directory)
    pretrained = load_clip(config.clip.weights)
    method = reference.method_of(modules)
    if method == "ivlp" and config.method == "promptsrc":
        method = "promptsrc"  # whose file is the same if it lacks the frozen tower
    if method:
        # The published settings of its prompts and losses, apart from the overrides.
        for key, value in flat(method_config(method, config.dataset.name).to_dict()).items():
            if key.startswith(METHOD_SECTIONS) and key not in overrides:
                config.update_from_flattened_dict({key: value})
        # A longer context did not start from the initial words. A shorter one did only if the
        # other words are fixed.
        words = len(context_tokens(config.text_prompt.init, pretrained.tokenizer))
        length = prompts["text"]["context"].shape[-2] if "text" in prompts else 0
        if length > words or (length < words and not config.text_prompt.fixed_words):
            config.text_prompt.init = ""
    for key, value in _keys(prompts, method, config.method, pretrained.config).items():
        asked = overrides.get(key, value)
        if key == "cavpt.first_layer" and asked < 0:
            asked += pretrained.config.vision.layers + 1
        if asked != value:
            raise UserError(
                f"{directory}: {key} is {value} in the checkpoint, but the command line says "
                f"{overrides[key]}."
            )
        config.update_from_flattened_dict({key: value})
    validate(config)
    _check(prompts, config, pretrained, directory)
    write_run(config, prompts, pretrained, workdir, "published PyTorch code", epoch)


def _keys(prompts: Prompts, method: str | None, named: str, clip: CLIPConfig) -> dict[str, Any]:
    """Return the settings that a checkpoint decides: the method, and the sizes of its parts.

    named: The method on the command line, which is taken if several methods fit.
    """
    shapes = {name: x.shape for name, x in flat(prompts).items()}
    text, visual = shapes.get("text.context", ()), shapes.get("visual.tokens", ())
    if coupling := shapes.get("coupling.kernel"):
        visual = (coupling[0], text[-2])
    cavpt = "cavpt" in prompts  # always beside the two others
    has = {methods.TEXT: text or cavpt, methods.VISUAL: visual or cavpt, methods.CLASS_AWARE: cavpt}
    parts = {part for part, there in has.items() if there}
    first = method or ("" if named in OF_OTHER_CODE else named)
    fitting = [name for name, known in METHODS.items() if set(known.parts) == parts]
    keys: dict[str, Any] = {
        "method": first if first in fitting else fitting[0],
        "text_prompt.depth": text[0] if text else 1,
        "text_prompt.class_specific": len(text) == 4,
        "text_prompt.conditioned": "meta_net" in prompts,
        "visual_prompt.coupled": "coupling" in prompts,
        "visual_prompt.ln_pre": bool(method and visual),
        "visual_prompt.depth": visual[0] if method and visual else -1,
    }
    if text:
        keys["text_prompt.length"] = text[-2]
    if visual:
        keys["visual_prompt.length"] = visual[1]
    if not method:
        keys |= {"text_prompt.init": "", "text_prompt.fixed_words": False}
    if cavpt:
        keys["cavpt.first_layer"] = clip.vision.layers + 1 - shapes["cavpt.global_tokens"][0]
    return keys


def reverse_reference(source: pathlib.Path, directory: pathlib.Path, clip: str = "") -> None:
    """Write the prompts of a workdir as a checkpoint folder that the published code loads.

    clip: where CLIP's weights are, if they have moved. Raise UserError if no published code has
    such prompts, an array is missing or misshapen, or the folder is not new.
    """
    config, saved = read_run(source)
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise UserError(f"{directory} already exists: name a new folder.")
    names = _modules(config, source)
    prompts, visual = saved.prompts, config.visual_prompt
    _check(prompts, config, load_clip(clip or config.clip.weights), source)
    modules = {name: reference.module_from_prompts(name, prompts) for name in names}
    if modules.get(reference.CAVPT) and not modules[reference.VISUAL]:
        # DPT's code always loads a visual prompt, even one without layers.
        width = prompts["cavpt"]["global_tokens"].shape[-1]
        modules[reference.VISUAL] = {"ctx": np.zeros((0, visual.length, width), np.float32)}
    epoch = saved.meta.get("epoch", saved.step)
    for name, tensors in modules.items():
        if tensors:
            folder = make_folder(directory / name, "convert reference --reverse")
            write_torch_file(folder / f"model.pth.tar-{epoch}", tensors, epoch)
            write_whole(folder / "checkpoint", f"model.pth.tar-{epoch}\n")
    say(
        f"wrote {directory}, which the published code loads with --model-dir and --load-epoch "
        f"{epoch}"
    )


def _modules(config: ConfigDict, source: pathlib.Path) -> list[str]:
    """Return the published modules that may have a run's prompts.  Raise UserError if none has."""
    text, visual, parts = config.text_prompt, config.visual_prompt, METHODS[config.method].parts
    has_text, has_visual = methods.TEXT in parts, methods.VISUAL in parts
    others = {methods.WEIGHTS, methods.CLASSIFIER} & {*parts}
    deep_text = has_text and (text.depth > 1 or (text.fixed_words and bool(text.init.strip())))
    joint = deep_text or (has_visual and (visual.ln_pre or visual.coupled))
    if others:
        what = f"learned parts ({', '.join(sorted(others))})"
    elif joint and (
        (has_visual and not visual.ln_pre)
        or methods.CLASS_AWARE in parts
        or (has_text and (text.class_specific or text.class_position != "end"))
        or text.conditioned
    ):
        what = (
            "context tokens of several layers, fixed words, or visual tokens among the patches, "
            "combined with other parts"
        )
    elif not joint and has_visual and visual.depth > 0:
        what = "visual tokens that stay in the sequence and skip the layer norm of the patches"
    elif joint:
        return [reference.COUPLED if visual.coupled else reference.JOINT]
    else:
        return [reference.TEXT, reference.VISUAL, reference.CAVPT]
    raise UserError(f"{source} has {what}: no published code of prompts has these.")


def read_run(source: pathlib.Path) -> tuple[ConfigDict, Saved]:
    """Return settings and newest prompts of a workdir or prompt file."""
    config = load_config(source)
    if config.method == ZERO_SHOT:
        raise UserError(f"{source} is zero-shot, so it has no prompts to convert.")
    return config, load_newest(source)


def write_run(
    config: ConfigDict,
    prompts: Prompts,
    pretrained: Pretrained,
    workdir: pathlib.Path,
    source: str,
    epoch: int = 0,
) -> None:
    """Write a new workdir with converted prompts.

    source: where they are from, for the record. epoch: that of their training, 0 if unknown.
    """
    if (workdir / FOLDER).exists() or (workdir / CONFIG_FILE).exists():
        raise UserError(f"{workdir} already holds a run: name a new --workdir.")
    save_config(config, workdir)
    # Converted prompts do not say what they were trained on; the settings do.
    record = {
        "method": config.method,
        "dataset": config.dataset.name,
        "classes": config.dataset.classes,
        "epoch": epoch,
        "settings": result_settings(config),
        "classnames": None,
        "clip": clip_fingerprint(pretrained),
        "changes": [],
        "source": source,
    }
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(epoch, prompts, record)
        checkpoints.wait()
    say(f"wrote {workdir}: {config.method} prompts{f' from epoch {epoch}' if epoch else ''}")


def _check(
    prompts: Prompts, config: ConfigDict, pretrained: Pretrained, source: pathlib.Path
) -> None:
    """Raise UserError if an array is missing, left over or of another shape."""
    context = flat(prompts).get("text.context")
    classes = context.shape[1] if context is not None and context.ndim == 4 else 1
    model = make_model(config, ["any"] * classes, pretrained)
    check_shapes(prompts, shapes_of(model), str(source))
