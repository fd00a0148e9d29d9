"""Workdirs from checkpoint folders of the published PyTorch code, and back."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from dpt_jax import methods, settings
from dpt_jax.clip.config import CLIPConfig
from dpt_jax.clip.files import Tensors, write_torch_file
from dpt_jax.clip.pretrained import load_clip
from dpt_jax.clip.tokenizer import Tokenizer
from dpt_jax.convert.checkpoints import (
    CAVPT,
    TEXT,
    VISUAL,
    method_of,
    prompts_from_published,
    published_from_prompts,
    read_published,
)
from dpt_jax.convert.relatives import COUPLED, JOINT, module_from_prompts
from dpt_jax.data.dataset import load_dataset
from dpt_jax.errors import UserError
from dpt_jax.io import make_folder
from dpt_jax.logging import say
from dpt_jax.methods import METHODS, ZERO_SHOT
from dpt_jax.model import PromptedCLIP
from dpt_jax.prompts import Prompts
from dpt_jax.prompts.text import context_tokens
from dpt_jax.storage.weights import local_weights
from dpt_jax.training.checkpoints import FOLDER, Checkpoints, Saved, load_newest
from dpt_jax.training.fingerprint import clip_fingerprint, result_settings

# Methods that DPT's code does not have, and whose checkpoints differ from its own.
OF_OTHER_CODE = ("cocoop", "ivlp", "maple", "promptsrc")
# What a method's prompts are made by; the rest is of the backbone, the data and the training.
METHOD_SECTIONS = ("text_prompt.", "visual_prompt.", "cavpt.", "loss.")


def convert_reference(
    directory: pathlib.Path, workdir: pathlib.Path, config: ConfigDict, overrides: Mapping[str, Any]
) -> None:
    """Write a workdir with the prompts of a checkpoint folder of the published code.

    The sizes come from the checkpoint. Raise UserError where a size in `overrides` contradicts it,
    or where the prompts do not fit the backbone.
    """
    if (workdir / FOLDER).exists() or (workdir / settings.CONFIG_FILE).exists():
        raise UserError(f"{workdir} already holds a run: name a new --workdir.")
    epoch, modules = read_published(directory)
    pretrained = load_clip(local_weights(config.clip.weights))
    clip = pretrained.config
    try:
        prompts = prompts_from_published(modules)
    except KeyError as reason:
        raise UserError(f"{directory}: tensor {reason.args[0]} is missing.") from reason
    method = method_of(modules)
    if method == "ivlp" and config.method == "promptsrc":
        # Without the frozen tower in it, a file can be of either.
        method = "promptsrc"
    if method:
        take_settings(config, method, overrides)
        drop_words_that_count_for_nothing(config, prompts, pretrained.tokenizer)
    wanted = "" if config.method in OF_OTHER_CODE else config.method
    found = method_with(prompts, method or wanted)
    for key, value in {"method": found, **sizes(prompts, clip, method)}.items():
        said = overrides.get(key, value)
        from_the_end = key == "cavpt.first_layer" and said == value - clip.vision.layers - 1
        if said != value and not from_the_end:
            raise UserError(
                f"{directory}: {key} is {value} in the checkpoint, but the command line says "
                f"{said}."
            )
        settings.set_key(config, key, value)
    settings.check(config)
    check_fit(prompts, config, clip, directory, next(iter(modules)) if method else "")
    check_classes(prompts, config, directory)
    settings.save(config, workdir)
    # A checkpoint does not say what it was trained on; the settings do.
    meta = {
        "method": config.method,
        "dataset": config.dataset.name,
        "classes": config.dataset.classes,
        "epoch": epoch,
        "settings": result_settings(config),
        "classnames": None,
        "clip": clip_fingerprint(pretrained),
        "changes": [],
        "source": "published PyTorch code",
    }
    with Checkpoints(workdir, create=True) as checkpoints:
        checkpoints.save(epoch, prompts, meta)
        checkpoints.wait()
    say(f"wrote {workdir}: {meta['method']} prompts of epoch {epoch}")


def reverse_reference(source: pathlib.Path, directory: pathlib.Path) -> None:
    """Write the prompts of a workdir as a checkpoint folder that the published code loads.

    Raise UserError where that code has no place for them.
    """
    config, saved = read_run(source)
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise UserError(f"{directory} is there already: name a new folder.")
    modules = modules_of(config, saved.prompts, source)
    epoch = saved.meta.get("epoch", saved.step)
    for name, tensors in modules.items():
        folder = make_folder(directory / name, "convert reference --reverse")
        write_torch_file(folder / f"model.pth.tar-{epoch}", tensors, epoch)
        (folder / "checkpoint").write_text(f"model.pth.tar-{epoch}\n")
    say(
        f"wrote {directory}, which the published code loads with --model-dir and --load-epoch "
        f"{epoch}"
    )


def modules_of(config: ConfigDict, prompts: Prompts, source: pathlib.Path) -> dict[str, Tensors]:
    """Return the state dict of each module.  Raise UserError where no code has a place for them."""
    text, visual = config.text_prompt, config.visual_prompt
    parts = METHODS[config.method].parts
    has_text, has_visual = methods.TEXT in parts, methods.VISUAL in parts
    deep = has_text and (text.depth > 1 or (text.fixed_words and bool(text.init.strip())))
    if not deep and not (has_visual and (visual.ln_pre or visual.coupled)):
        if has_visual and visual.depth > 0:
            raise UserError(
                f"{source} has visual tokens that carry on after layer {visual.depth} and do not "
                "pass the layer norm of the patches: no published code has such ones."
            )
        return published_from_prompts(prompts, visual.length)
    if (
        (has_visual and not visual.ln_pre)
        or methods.CLASS_AWARE in parts
        or (has_text and (text.class_specific or text.class_position != "end"))
        or text.conditioned
    ):
        raise UserError(
            f"{source} has context tokens of several layers, fixed words, or visual tokens among "
            "the patches, and besides what no published code has together with them."
        )
    module = COUPLED if visual.coupled else JOINT
    return {module: module_from_prompts(module, prompts)}


def read_run(source: pathlib.Path) -> tuple[ConfigDict, Saved]:
    """Return settings and newest prompts of a workdir or prompt file.

    Raise UserError where there are none.
    """
    config = settings.load_saved(source)
    if config.method == ZERO_SHOT:
        raise UserError(f"{source} is zero-shot, so it has no prompts to convert.")
    return config, load_newest(source)


def method_with(prompts: Prompts, wanted: str) -> str:
    """Return the method of a tree of prompts: the wanted one if it learns these parts.

    Several methods learn the same parts; the first one of the table is the plainest.
    """
    parts = {methods.TEXT} if "text" in prompts else set()
    if "visual" in prompts or "coupling" in prompts:
        parts |= {methods.VISUAL}
    if "cavpt" in prompts:
        parts = {methods.TEXT, methods.VISUAL, methods.CLASS_AWARE}
    if wanted in METHODS and set(METHODS[wanted].parts) == parts:
        return wanted
    return next(name for name, method in METHODS.items() if set(method.parts) == parts)


def take_settings(config: ConfigDict, method: str, overrides: Mapping[str, Any]) -> None:
    """Set what a method's prompts are made by, but where the command line says something else."""
    own = settings.flat(settings.of_method(method, config.dataset.name).to_dict())
    for key, value in own.items():
        if key.startswith(METHOD_SECTIONS) and key not in overrides:
            settings.set_key(config, key, value)


def drop_words_that_count_for_nothing(
    config: ConfigDict, prompts: Prompts, tokenizer: Tokenizer
) -> None:
    """Leave no initial words where the context is none that could have begun with them.

    It has as many tokens as they, or fewer where the others stay fixed. A published context that
    is longer has begun at random.
    """
    words = len(context_tokens(config.text_prompt.init, tokenizer))
    length = prompts["text"]["context"].shape[-2] if "text" in prompts else 0
    if length > words or (length < words and not config.text_prompt.fixed_words):
        config.text_prompt.init = ""


def sizes(prompts: Prompts, clip: CLIPConfig, method: str | None) -> dict[str, Any]:
    """Return the settings that the shapes of the prompts decide, and those of DPT's own code.

    method: the relative whose prompts these are, None for those of DPT's code.
    """
    text: tuple[int, ...] = prompts["text"]["context"].shape if "text" in prompts else ()
    visual: tuple[int, ...] = prompts["visual"]["tokens"].shape if "visual" in prompts else ()
    if "coupling" in prompts:
        visual = (len(prompts["coupling"]["kernel"]), text[-2])
    keys: dict[str, Any] = {
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


def check_fit(
    prompts: Any, config: ConfigDict, clip: CLIPConfig, directory: pathlib.Path, module: str = ""
) -> None:
    """Raise UserError naming a tensor whose shape is not the one this backbone needs.

    module: the one that all prompts are of, if they are of one.
    """
    classes = 1
    if "cavpt" in prompts:
        classes = prompts["cavpt"]["classifier"]["kernel"].shape[-1]
    elif config.text_prompt.class_specific:
        classes = prompts["text"]["context"].shape[1]
    model = PromptedCLIP(clip, settings.prompt_config(config, classes, clip.vision.layers))
    wanted = jax.eval_shape(model.init, jax.random.key(0))
    there, here = (
        settings.flat(jax.tree.map(lambda x: tuple(x.shape), tree)) for tree in (prompts, wanted)
    )
    modules = {"text": TEXT, "meta_net": TEXT, "visual": VISUAL, "cavpt": CAVPT}
    for name in sorted({*there, *here}):
        if there.get(name) != here.get(name):
            raise UserError(
                f"{directory / (module or modules[name.partition('.')[0]])}: {name} has shape "
                f"{there.get(name)}, "
                f"but the backbone {config.clip.weights} needs {here.get(name)}."
            )


def check_classes(prompts: Any, config: ConfigDict, directory: pathlib.Path) -> None:
    """Raise UserError where a context of each class is of another number than the dataset has.

    A dataset that cannot be loaded here is reported, and not compared.
    """
    if not config.text_prompt.class_specific:
        return
    theirs = prompts["text"]["context"].shape[1]
    try:
        own = len(load_dataset(config.dataset, config.seed).classnames)
    except UserError as reason:
        say(f"the {theirs} classes of {directory} are not compared with a dataset ({reason})")
        return
    if own != theirs:
        raise UserError(
            f"{directory} has a context for each of {theirs} classes, but {config.dataset.name} "
            f"({config.dataset.classes} classes) has {own}: name the dataset of its training."
        )
