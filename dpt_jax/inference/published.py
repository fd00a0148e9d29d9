"""Workdirs from checkpoint folders of the published PyTorch code, and back."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from dpt_jax import settings
from dpt_jax.clip.config import CLIPConfig
from dpt_jax.clip.files import write_torch_file
from dpt_jax.clip.pretrained import load_clip
from dpt_jax.data.dataset import load_dataset
from dpt_jax.errors import UserError
from dpt_jax.inference.experiment import backbone_id
from dpt_jax.methods import ZERO_SHOT
from dpt_jax.model import PromptedCLIP
from dpt_jax.runtime.console import say
from dpt_jax.runtime.files import make_folder
from dpt_jax.storage.checkpoints import FOLDER, Checkpoints, Saved, load_newest
from dpt_jax.storage.published import (
    CAVPT,
    TEXT,
    VISUAL,
    prompts_from_published,
    published_from_prompts,
    read_published,
)


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
    pretrained = load_clip(config.clip.weights)
    clip = pretrained.config
    try:
        prompts = prompts_from_published(modules)
    except KeyError as reason:
        raise UserError(f"{directory}: tensor {reason.args[0]} is missing.") from reason
    for key, value in sizes(prompts, clip).items():
        said = overrides.get(key, value)
        from_the_end = key == "cavpt.first_layer" and said == value - clip.vision.layers - 1
        if said != value and not from_the_end:
            raise UserError(
                f"{directory}: {key} is {value} in the checkpoint, but the command line says "
                f"{said}."
            )
        settings.set_key(config, key, value)
    if "cavpt" in prompts and not config.cavpt.top_k:
        raise UserError(
            f"{directory} holds a CAVPT, so cavpt.top_k must not be 0: give the one it was "
            "trained with."
        )
    settings.check(config)
    check_fit(prompts, config, clip, directory)
    check_classes(prompts, config, directory)
    settings.save(config, workdir)
    meta = {
        "method": settings.method(config),
        "classnames": None,
        "epoch": epoch,
        "source": "published PyTorch code",
    }
    # A checkpoint does not say what it was trained on; the flags do.
    meta |= {"dataset": config.dataset.name, "classes": config.dataset.classes}
    meta |= {"backbone": backbone_id(pretrained.params, replicated=False)}
    with Checkpoints(workdir, create=True) as checkpoints:
        checkpoints.save(epoch, prompts, meta)
        checkpoints.wait()
    say(f"wrote {workdir}: {meta['method']} prompts of epoch {epoch}")


def reverse_reference(source: pathlib.Path, directory: pathlib.Path) -> None:
    """Write the prompts of a workdir as a checkpoint folder that the published code loads.

    Raise UserError where that code has no place for them.
    """
    config, saved = read_run(source)
    if config.text_prompt.depth > 1:
        raise UserError(
            f"{source} has a context of {config.text_prompt.depth} layers; the published code has "
            "one of the first."
        )
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise UserError(f"{directory} is there already: name a new folder.")
    modules = published_from_prompts(saved.prompts, config.visual_prompt.length)
    epoch = saved.meta.get("epoch", saved.step)
    for name, tensors in modules.items():
        folder = make_folder(directory / name, "convert reference --reverse")
        write_torch_file(folder / f"model.pth.tar-{epoch}", tensors, epoch)
        (folder / "checkpoint").write_text(f"model.pth.tar-{epoch}\n")
    say(
        f"wrote {directory}, which the published code loads with --model-dir and --load-epoch "
        f"{epoch}"
    )


def read_run(source: pathlib.Path) -> tuple[ConfigDict, Saved]:
    """Return settings and newest prompts of a workdir or prompt file.

    Raise UserError where there are none.
    """
    config = settings.load_saved(source)
    if settings.method(config) == ZERO_SHOT:
        raise UserError(f"{source} is zero-shot, so it has no prompts to convert.")
    return config, load_newest(source)


def sizes(prompts: Any, clip: CLIPConfig) -> dict[str, Any]:
    """Return the settings that the shapes of the prompts decide."""
    text = prompts["text"]["context"].shape if "text" in prompts else ()
    keys: dict[str, Any] = {
        "text_prompt.length": text[-2] if text else 0,
        "text_prompt.depth": 1,
        "text_prompt.class_specific": len(text) == 4,
        "text_prompt.init": "",
        "visual_prompt.length": prompts["visual"]["tokens"].shape[1] if "visual" in prompts else 0,
    }
    if "cavpt" in prompts:
        keys["cavpt.first_layer"] = clip.vision.layers + 1 - len(prompts["cavpt"]["global_tokens"])
    else:
        keys["cavpt.top_k"] = 0
    return keys


def check_fit(prompts: Any, config: ConfigDict, clip: CLIPConfig, directory: pathlib.Path) -> None:
    """Raise UserError naming a tensor whose shape is not the one this backbone needs."""
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
    module = {"text": TEXT, "visual": VISUAL, "cavpt": CAVPT}
    for name in sorted({*there, *here}):
        if there.get(name) != here.get(name):
            raise UserError(
                f"{directory / module[name.partition('.')[0]]}: {name} has shape "
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
