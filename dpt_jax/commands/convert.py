"""Converts weights and prompts.

    python -m dpt_jax.convert clip SRC DST
    python -m dpt_jax.convert export W FILE.safetensors
    python -m dpt_jax.convert serve W DIR [--clip=WEIGHTS]
    python -m dpt_jax.convert reference CHECKPOINT_DIR --workdir=W [--config=… --config.KEY=VALUE …]
    python -m dpt_jax.convert reference --reverse W CHECKPOINT_DIR

`clip` turns any CLIP that `clip.weights` takes into an Orbax directory (local
or gs://). `export` writes the prompts of a workdir to one small file that
stands wherever a workdir does that is only read: predict, --mode=eval,
init_from, and here. `serve` compiles the classifier into a file that runs
without this package. `reference` turns a checkpoint folder of the published PyTorch code
into a workdir that --mode=eval and init_from take; what a checkpoint does not
hold (backbone, dataset, class position, top_k) comes from the flags. With
--reverse it goes the other way.
"""

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from dpt_jax.clip.config import CLIPConfig
from dpt_jax.clip.files import Tensors, read_torch_file, write_torch_file
from dpt_jax.clip.pretrained import load_clip, save_orbax
from dpt_jax.commands import flags as cli
from dpt_jax.errors import UserError
from dpt_jax.inference.evaluation import RESULTS_FILE, read_result
from dpt_jax.inference.experiment import backbone_id
from dpt_jax.model import PromptedCLIP
from dpt_jax.runtime.console import say
from dpt_jax.settings import config as configs
from dpt_jax.storage import prompt_file
from dpt_jax.storage.checkpoints import FOLDER, Checkpoints, Saved, load_newest
from dpt_jax.storage.published import (
    CAVPT,
    MODULES,
    TEXT,
    VISUAL,
    prompts_from_published,
    published_from_prompts,
)

USAGE = (
    "use `convert clip SRC DST`, `export W FILE.safetensors`, `serve W DIR`, `reference CHECKPOINT_DIR --workdir=W` "
    "or `reference --reverse W CHECKPOINT_DIR`"
)


def main(argv: Sequence[str]) -> None:
    match list(argv[1:]):
        case ["clip", source, target]:
            save_orbax(load_clip(source), target)
            say(f"wrote {target}")
        case ["export", source, target]:
            export(_path(source), _path(target))
        case ["serve", source, target]:
            serve(_path(source), _path(target))
        case ["reference", source, target] if flags.FLAGS.reverse:
            reverse_reference(_path(source), _path(target))
        case ["reference", directory] if not flags.FLAGS.reverse:
            if not flags.FLAGS.workdir:
                raise UserError(
                    "convert reference: --workdir is not given; it says where the converted prompts go."
                )
            config, overrides, _ = cli.flag_config()
            convert_reference(_path(directory), _path(flags.FLAGS.workdir), config, overrides)
        case _:
            raise UserError(f"convert: unknown arguments {argv[1:]}; {USAGE}.")


def _path(argument: str) -> pathlib.Path:
    return pathlib.Path(argument).expanduser()


def export(source: pathlib.Path, target: pathlib.Path) -> None:
    """Writes the prompts of a workdir to a prompt file.  Raises UserError where there are none, or no such name."""
    if target.suffix != prompt_file.SUFFIX:
        raise UserError(f"convert export: {target} should end in {prompt_file.SUFFIX}.")
    config, saved = read_run(source)
    if prompt_file.is_prompt_file(source):
        results = prompt_file.read_header(source).get("results")
    else:
        results = read_result(source / RESULTS_FILE) if (source / RESULTS_FILE).is_file() else None
    prompt_file.write(target, saved.step, saved.prompts, saved.meta, config.to_dict(), results)
    say(f"wrote {target}: {configs.method(config)} prompts, {target.stat().st_size / 1024:.0f} kB")


def serve(source: pathlib.Path, target: pathlib.Path) -> None:
    """Writes the classifier of a workdir as a program.  Raises UserError where it cannot be loaded."""
    from dpt_jax.inference import program as programs
    from dpt_jax.inference.predictor import load

    predictor = load(source, clip=flags.FLAGS.clip)
    for file in programs.write(predictor, cli.make_folder(target, "convert serve")):
        say(f"wrote {file} ({file.stat().st_size / 1024:,.0f} kB)")


def read_run(source: pathlib.Path) -> tuple[ConfigDict, Saved]:
    """Settings and newest prompts of a workdir or prompt file.  Raises UserError where there are none."""
    config = configs.load_saved(source)
    if configs.method(config) == "zeroshot":
        raise UserError(f"{source} is zero-shot, so it has no prompts to convert.")
    return config, load_newest(source)


def reverse_reference(source: pathlib.Path, directory: pathlib.Path) -> None:
    """Writes the prompts of a workdir as a checkpoint folder that the published code loads, epoch and all.

    Raises UserError where that code has no place for them.
    """
    config, saved = read_run(source)
    if config.text_prompt.depth > 1:
        raise UserError(
            f"{source} has a context of {config.text_prompt.depth} layers; the published code has one of the first."
        )
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise UserError(f"{directory} is there already: name a new folder.")
    modules = published_from_prompts(saved.prompts, config.visual_prompt.length)
    epoch = saved.meta.get("epoch", saved.step)
    for name, tensors in modules.items():
        folder = cli.make_folder(directory / name, "convert reference --reverse")
        write_torch_file(folder / f"model.pth.tar-{epoch}", tensors, epoch)
        (folder / "checkpoint").write_text(f"model.pth.tar-{epoch}\n")
    say(
        f"wrote {directory}, which the published code loads with --model-dir and --load-epoch {epoch}"
    )


def convert_reference(
    directory: pathlib.Path, workdir: pathlib.Path, config: ConfigDict, overrides: Mapping[str, Any]
) -> None:
    """Writes a workdir with the prompts of a checkpoint folder of the published code.

    The sizes come from the checkpoint; a size in `overrides` that contradicts
    it, or prompts that do not fit the backbone, raise UserError.
    """
    if (workdir / FOLDER).exists() or (workdir / configs.CONFIG_FILE).exists():
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
                f"{directory}: {key} is {value} in the checkpoint, but the command line says {said}."
            )
        configs.set_key(config, key, value)
    if "cavpt" in prompts and not config.cavpt.top_k:
        raise UserError(
            f"{directory} holds a CAVPT, so cavpt.top_k must not be 0: give the one it was trained with."
        )
    configs.check(config)
    check_fit(prompts, config, clip, directory)
    configs.save(config, workdir)
    meta = {
        "method": configs.method(config),
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


def read_published(directory: pathlib.Path) -> tuple[int, dict[str, Tensors]]:
    """(epoch, state dict of each module) of the last epoch that all modules have, else of the best model."""
    if not directory.is_dir():
        raise UserError(f"{directory} is not a folder; it should hold {', '.join(MODULES)}.")
    folders = [directory / name for name in MODULES if (directory / name).is_dir()]
    if not folders:
        raise UserError(
            f"{directory} holds none of {', '.join(MODULES)}: it is no checkpoint of the published code."
        )
    epochs = set.intersection(*(_epochs(folder) for folder in folders))
    name = f"model.pth.tar-{max(epochs)}" if epochs else "model-best.pth.tar"
    modules, epoch = {}, None
    for folder in folders:
        if not (folder / name).exists():
            raise UserError(
                f"{folder} has no {name}, and no epoch that the folders beside it have too."
            )
        contents = read_torch_file(folder / name)
        modules[folder.name] = contents.tensors
        epoch = contents.epoch
    return (max(epochs) if epochs else epoch or 0), modules


def _epochs(folder: pathlib.Path) -> set[int]:
    names = (re.fullmatch(r"model\.pth\.tar-(\d+)", file.name) for file in folder.iterdir())
    return {int(found[1]) for found in names if found}


def sizes(prompts: Any, clip: CLIPConfig) -> dict[str, Any]:
    """The configuration keys that the shapes of the prompts decide."""
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
    """Raises UserError naming a tensor whose shape is not the one this backbone needs."""
    classes = 1
    if "cavpt" in prompts:
        classes = prompts["cavpt"]["classifier"]["kernel"].shape[-1]
    elif config.text_prompt.class_specific:
        classes = prompts["text"]["context"].shape[1]
    model = PromptedCLIP(clip, configs.prompt_config(config, classes, clip.vision.layers))
    wanted = jax.eval_shape(model.init, jax.random.key(0))
    there, here = (
        configs.flat(jax.tree.map(lambda x: tuple(x.shape), tree)) for tree in (prompts, wanted)
    )
    module = {"text": TEXT, "visual": VISUAL, "cavpt": CAVPT}
    for name in sorted({*there, *here}):
        if there.get(name) != here.get(name):
            raise UserError(
                f"{directory / module[name.partition('.')[0]]}: {name} has shape {there.get(name)}, "
                f"but the backbone {config.clip.weights} needs {here.get(name)}."
            )


if __name__ == "__main__":
    cli.define_flags()
    flags.DEFINE_bool("reverse", False, "From a workdir to a checkpoint of the published code.")
    cli.define_clip_flag()
    cli.run(main)
