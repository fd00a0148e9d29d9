"""The published PyTorch code's names for the prompts, and ours.

A checkpoint of DPT's code is up to three state dicts, one a module: the text
prompt, the visual prompt and CAVPT (its "extractor"). One of its relatives is
a single module, see convert.relatives.
"""

import pathlib
import re
from typing import Any

import jax
import numpy as np

from dpt_jax.clip.files import Tensors, read_torch_file
from dpt_jax.convert import relatives
from dpt_jax.errors import UserError

TEXT = "prompt_learner"
VISUAL = "image_encoder.transformer.ctx_learner"
CAVPT = "image_encoder.transformer.extractor"
MODULES = (TEXT, VISUAL, CAVPT)
KNOWN = (*MODULES, *relatives.STACKS)
# One CAVPT layer: our parameter and whether it is stored transposed, by their name.
_LAYER = {
    "meta_nets.{}.weight": ("class_projection/kernel", True),
    "meta_nets.{}.bias": ("class_projection/bias", False),
    "attns.{}.qmlp.weight": ("query/kernel", True),
    "attns.{}.kmlp.weight": ("key/kernel", True),
    "attns.{}.vmlp.weight": ("value/kernel", True),
    "lns.{}.weight": ("ln_classifier/scale", False),
    "lns.{}.bias": ("ln_classifier/bias", False),
    "classfiers.{}.weight": ("classifier/kernel", True),
    "lns2.{}.weight": ("ln_prompt/scale", False),
    "lns2.{}.bias": ("ln_prompt/bias", False),
}


# What a module's file may hold besides: buffers that belong to the classes of its training.
BUFFERS = ("token_prefix", "token_suffix")
# Tensors of KgCoOp's file that nothing in its code uses.
KGCOOP = ("bias_vectors", "meta_net.linear1.weight", "meta_net.linear1.bias")
# The network of CoCoOp's, and our places for it.
META_NET = {
    f"meta_net.{layer}.{theirs}": (layer, ours)
    for layer in ("linear1", "linear2")
    for theirs, ours in (("weight", "kernel"), ("bias", "bias"))
}


def account(modules: dict[str, Tensors], directory: pathlib.Path) -> None:
    """Raise UserError where a module of DPT's code has a tensor that would be left over."""
    layers = len(modules[CAVPT].get("ctx", ())) if CAVPT in modules else 0
    known = {
        TEXT: {"ctx", *BUFFERS},
        VISUAL: {"ctx"},
        CAVPT: {"ctx", *(name.format(i) for name in _LAYER for i in range(layers))},
    }
    for module, tensors in modules.items():
        more = set(tensors) - known[module]
        if module == TEXT:
            more -= {*KGCOOP} if KGCOOP[0] in more else META_NET.keys()
        if more:
            raise UserError(
                f"{directory / module}: tensor {min(more)} is none of the published code's, so "
                "what it is for is not known, and nothing was converted."
            )


def method_of(modules: dict[str, Tensors]) -> str | None:
    """Return the relative of DPT whose checkpoint this is, None where nothing tells it from DPT's,
    CoOp's, VPT's or VLP's.
    """
    if module := relatives.whole(modules):
        return relatives.method_of(module, modules[module])
    tensors = modules.get(TEXT, {})
    if KGCOOP[0] in tensors:
        return "kgcoop"
    return "cocoop" if META_NET.keys() & tensors.keys() else None


def prompts_from_published(modules: dict[str, Tensors]) -> Any:
    """Return the tree of prompts, float32, from the state dicts of the modules that are there.

    Raise KeyError with the name of a tensor that is missing.
    """
    prompts: dict[str, Any] = {}
    if module := relatives.whole(modules):
        prompts = relatives.prompts_from_module(module, modules[module])
    if TEXT in modules:
        tensors = modules[TEXT]
        prompts["text"] = {"context": tensors["ctx"][None]}
        if method_of(modules) == "cocoop":
            for theirs, (layer, ours) in META_NET.items():
                own = prompts.setdefault("meta_net", {}).setdefault(layer, {})
                own[ours] = tensors[theirs].T
    # Where CAVPT begins at the first layer, the published visual prompt has no layers.
    if VISUAL in modules and len(modules[VISUAL]["ctx"]):
        prompts["visual"] = {"tokens": modules[VISUAL]["ctx"]}
    if CAVPT in modules:
        tensors = modules[CAVPT]
        cavpt: dict[str, Any] = {"global_tokens": tensors["ctx"]}
        for theirs, (ours, transposed) in _LAYER.items():
            layers = [tensors[theirs.format(i)] for i in range(len(tensors["ctx"]))]
            module, _, leaf = ours.partition("/")
            cavpt.setdefault(module, {})[leaf] = np.stack(
                [w.T if transposed else w for w in layers]
            )
        prompts["cavpt"] = cavpt
    return jax.tree.map(lambda x: np.asarray(x, np.float32, order="C"), prompts)


def published_from_prompts(prompts: Any, visual_length: int) -> dict[str, Tensors]:
    """Return the state dict of each module: the inverse of `prompts_from_published`.

    visual_length: tokens of a layer, also where CAVPT leaves no layer to them.
    """
    modules: dict[str, Tensors] = {}
    if "text" in prompts:
        modules[TEXT] = {"ctx": prompts["text"]["context"][0]}
    if "meta_net" in prompts:
        for theirs, (layer, ours) in META_NET.items():
            modules[TEXT][theirs] = prompts["meta_net"][layer][ours].T
    if "visual" in prompts:
        modules[VISUAL] = {"ctx": prompts["visual"]["tokens"]}
    if "cavpt" in prompts:
        cavpt = prompts["cavpt"]
        tokens = cavpt["global_tokens"]
        # That code makes all its modules, and looks for a file of each.
        layers = len(prompts["visual"]["tokens"]) if "visual" in prompts else 0
        modules.setdefault(
            VISUAL, {"ctx": np.zeros((layers, visual_length, tokens.shape[-1]), np.float32)}
        )
        modules[CAVPT] = {"ctx": tokens}
        for i in range(len(tokens)):
            for theirs, (ours, transposed) in _LAYER.items():
                module, _, leaf = ours.partition("/")
                weight = cavpt[module][leaf][i]
                modules[CAVPT][theirs.format(i)] = weight.T if transposed else weight
    return jax.tree.map(np.ascontiguousarray, modules)


def read_published(directory: pathlib.Path) -> tuple[int, dict[str, Tensors]]:
    """Return the epoch and the state dict of each module.

    They are of the last epoch that all modules have, else of the best model. Raise UserError where
    there is none, or where a tensor would be left over.
    """
    if not directory.is_dir():
        raise UserError(f"{directory} is not a folder; it should hold one of {', '.join(KNOWN)}.")
    folders = [directory / name for name in KNOWN if (directory / name).is_dir()]
    if not folders:
        raise UserError(
            f"{directory} holds none of {', '.join(KNOWN)}: it is no checkpoint of the "
            "published code."
        )
    if folders[-1].name in relatives.STACKS and len(folders) > 1:
        raise UserError(
            f"{directory} holds checkpoints of two methods ({folders[0].name} and "
            f"{folders[-1].name}): give a folder that has one of them alone."
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
    if module := relatives.whole(modules):
        relatives.account(module, modules[module], directory)
    else:
        account(modules, directory)
    return (max(epochs) if epochs else epoch or 0), modules


def _epochs(folder: pathlib.Path) -> set[int]:
    names = (re.fullmatch(r"model\.pth\.tar-(\d+)", file.name) for file in folder.iterdir())
    return {int(found[1]) for found in names if found}
