"""Convert checkpoint folders of the published PyTorch code to workdirs, and back."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from dpt_jax import methods
from dpt_jax.clip.config import CLIPConfig
from dpt_jax.clip.files import write_torch_file
from dpt_jax.clip.pretrained import Pretrained, load_clip
from dpt_jax.config import flat, method_config, prompt_config, validate
from dpt_jax.convert.published import (
    CAVPT,
    COUPLED,
    JOINT,
    TEXT,
    VISUAL,
    method_of,
    module_from_prompts,
    prompts_from_published,
    read_published,
)
from dpt_jax.errors import UserError
from dpt_jax.io import make_folder, write_whole
from dpt_jax.logging import say
from dpt_jax.methods import METHODS, ZERO_SHOT
from dpt_jax.model import PromptedCLIP
from dpt_jax.prompts import Prompts
from dpt_jax.prompts.text import context_tokens
from dpt_jax.training.checkpoints import FOLDER, Checkpoints, Saved, load_newest
from dpt_jax.training.initial_prompts import check_shapes, shapes_of
from dpt_jax.training.record import result_settings
from dpt_jax.training.setup import clip_fingerprint
from dpt_jax.training.workdir import CONFIG_FILE, load_config, save_config

# Methods whose own code saves other tensors than DPT's code.
OF_OTHER_CODE = ("cocoop", "ivlp", "maple", "promptsrc")
# Settings that belong to the method of a checkpoint; others belong to CLIP and the data.
METHOD_SECTIONS = ("text_prompt.", "visual_prompt.", "cavpt.", "loss.")


def convert_reference(
    directory: pathlib.Path, workdir: pathlib.Path, config: ConfigDict, overrides: Mapping[str, Any]
) -> None:
    """Write a workdir with the prompts of a checkpoint folder of published code.

    Args:
      directory: The checkpoint, one folder per module.
      workdir: A new one.
      config: Everything that a checkpoint does not hold. Its method and sizes are set here.
      overrides: Those of its values that were given explicitly.

    Raises:
      UserError: A tensor is missing, unknown or does not fit CLIP, or an override contradicts the
        checkpoint.
    """
    epoch, modules = read_published(directory)
    prompts = prompts_from_published(modules, directory)
    pretrained = load_clip(config.clip.weights)
    method = method_of(modules)
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


def _check(
    prompts: Prompts, config: ConfigDict, pretrained: Pretrained, source: pathlib.Path
) -> None:
    """Raise UserError if an array is missing, left over or of another shape."""
    context = flat(prompts).get("text.context")
    classes = context.shape[1] if context is not None and context.ndim == 4 else 1
    parts = prompt_config(config, classes, pretrained.config.vision.layers)
    check_shapes(prompts, shapes_of(PromptedCLIP(pretrained.config, parts)), str(source))


def write_run(
    config: ConfigDict,
    prompts: Prompts,
    pretrained: Pretrained,
    workdir: pathlib.Path,
    source: str,
    epoch: int = 0,
) -> None:
    """Write a new workdir with converted prompts.

    Args:
      config: Configuration of the run, validated.
      prompts: Host arrays.
      pretrained: Their CLIP.
      workdir: A new one.
      source: Where the prompts are from, for the record.
      epoch: Epoch of their training, 0 if unknown.
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
    modules = {name: module_from_prompts(name, prompts) for name in names}
    if modules.get(CAVPT) and not modules[VISUAL]:
        # DPT's code always loads a visual prompt, even one without layers.
        width = prompts["cavpt"]["global_tokens"].shape[-1]
        modules[VISUAL] = {"ctx": np.zeros((0, visual.length, width), np.float32)}
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


def read_run(source: pathlib.Path) -> tuple[ConfigDict, Saved]:
    """Return settings and newest prompts of a workdir or prompt file."""
    config = load_config(source)
    if config.method == ZERO_SHOT:
        raise UserError(f"{source} is zero-shot, so it has no prompts to convert.")
    return config, load_newest(source)


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
        return [COUPLED if visual.coupled else JOINT]
    else:
        return [TEXT, VISUAL, CAVPT]
    raise UserError(f"{source} has {what}: no published code of prompts has these.")


def _keys(prompts: Prompts, method: str | None, named: str, clip: CLIPConfig) -> dict[str, Any]:
    """Return the settings that a checkpoint decides: the method, and the sizes of its parts.

    method: see `method_of`. named: the method on the command line, taken if several methods fit.
    """
    text: tuple[int, ...] = prompts["text"]["context"].shape if "text" in prompts else ()
    visual: tuple[int, ...] = prompts["visual"]["tokens"].shape if "visual" in prompts else ()
    if "coupling.kernel" in flat(prompts):
        visual = (len(prompts["coupling"]["kernel"]), text[-2])
    parts = {methods.TEXT} if text else set()
    if visual:
        parts |= {methods.VISUAL}
    if "cavpt" in prompts:
        parts = {methods.TEXT, methods.VISUAL, methods.CLASS_AWARE}
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
    if "cavpt" in prompts:
        keys["cavpt.first_layer"] = clip.vision.layers + 1 - len(prompts["cavpt"]["global_tokens"])
    return keys
