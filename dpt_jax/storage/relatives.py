"""Checkpoints of the code of IVLP and PromptSRC: one module with the whole CLIP in it.

`layer` counts from 0 here: the tensors of the first layer have names of their own.
"""

import pathlib
import re
from collections.abc import Iterable

import numpy as np

from dpt_jax.clip.files import Tensors
from dpt_jax.errors import UserError
from dpt_jax.prompts import Prompts

JOINT = "VLPromptLearner"  # IVLP's and PromptSRC's module
# Part and leaf of our tree, the tensor of the first layer, and those of the others.
STACKS = (
    ("text", "context", "prompt_learner.ctx", "text_encoder.transformer.resblocks.{}.VPT_shallow"),
    ("visual", "tokens", "image_encoder.VPT", "image_encoder.transformer.resblocks.{}.VPT_shallow"),
)
# Where PromptSRC's code keeps the image tower that it holds the prompted one to.
FROZEN_TOWER = "prompt_learner.ZS_image_encoder."
# CLIP's own tensors, and buffers that belong to the classes of the training.
LEFT = re.compile(
    r"(logit_scale|prompt_learner\.token_(prefix|suffix)"
    r"|(image_encoder|text_encoder|prompt_learner\.ZS_image_encoder)\."
    r"(class_embedding|positional_embedding|proj|text_projection|conv1\.weight"
    r"|(ln_pre|ln_post|ln_final|transformer\.resblocks\.\d+\.(ln_1|ln_2|attn|mlp))\..+))"
)


def method_of(tensors: Iterable[str]) -> str:
    """Return the method whose module has tensors of these names."""
    return "promptsrc" if any(name.startswith(FROZEN_TOWER) for name in tensors) else "ivlp"


def names_of(first: str, deep: str, tensors: Iterable[str]) -> list[str]:
    """Return the names of a stack, as many as there are tensors of it; none where it is not."""
    deeper = sum(is_of(deep, name) for name in tensors)
    if not deeper and first not in tensors:
        return []
    return [first, *(deep.format(layer) for layer in range(1, deeper + 1))]


def is_of(deep: str, name: str) -> bool:
    """Return whether a name is one of the names that `deep` has for the layers."""
    return bool(re.fullmatch(re.escape(deep).replace(r"\{\}", r"\d+"), name))


def account(tensors: Tensors, folder: pathlib.Path) -> None:
    """Raise UserError where the module has a tensor that would be left over."""
    known = {
        name
        for name in tensors
        if any(name == first or is_of(deep, name) for *_, first, deep in STACKS)
    }
    more = sorted(name for name in set(tensors) - known if not LEFT.fullmatch(name))
    if any(name.startswith(FROZEN_TOWER) for name in tensors):
        raise UserError(f"{folder} is of PromptSRC; this method is not supported.")
    if more:
        raise UserError(
            f"{folder}: tensor {more[0]} is none of the published code's, so what it is for is "
            "not known, and nothing was converted."
        )
    if not known:
        raise UserError(f"{folder}: there is no learned tensor in it, such as {STACKS[0][2]}.")


def prompts_from_joint(tensors: Tensors) -> Prompts:
    """Return the tree of prompts from the state dict of the module.

    Raise KeyError with the name of a tensor that is missing.
    """
    prompts: Prompts = {}
    for part, leaf, first, deep in STACKS:
        if names := names_of(first, deep, tensors):
            prompts[part] = {leaf: np.stack([tensors[name] for name in names])}
    return prompts


def joint_from_prompts(prompts: Prompts) -> Tensors:
    """Return the learned tensors of the module: the inverse of `prompts_from_joint`.

    That code keeps CLIP's own where a file does not have them.
    """
    tensors: Tensors = {}
    for part, leaf, first, deep in STACKS:
        if part in prompts:
            layers = prompts[part][leaf]
            names = [first, *(deep.format(layer) for layer in range(1, len(layers)))]
            tensors |= dict(zip(names, layers, strict=True))
    return tensors
