"""Checkpoints of the code of IVLP, PromptSRC and MaPLe: one module with the whole CLIP in it."""

import pathlib
import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from dpt_jax.clip.files import Tensors
from dpt_jax.errors import UserError

JOINT = "VLPromptLearner"  # IVLP's and PromptSRC's module
COUPLED = "MultiModalPromptLearner"  # MaPLe's

Parts = dict[str, dict[str, np.ndarray]]  # the arrays of each part of the prompts, by name


class Stack(NamedTuple):
    """One array of our tree, whose layers that code has as tensors of their own.

    first: the name of the first layer's. deep: the names of the others, numbered from `number` on.
    """

    part: str
    leaf: str
    first: str
    deep: str
    number: int
    transposed: bool = False

    def is_deep(self, name: str) -> bool:
        """Return whether a name is one of the other layers'."""
        return bool(re.fullmatch(re.escape(self.deep).replace(r"\{\}", r"\d+"), name))

    def names(self, layers: int) -> list[str]:
        """Return the names of so many layers."""
        return [self.first, *(self.deep.format(self.number + i) for i in range(layers - 1))]

    def names_in(self, tensors: Iterable[str]) -> list[str]:
        """Return the names of as many layers as there are tensors of; none where there is none."""
        deeper = sum(map(self.is_deep, tensors))
        return self.names(1 + deeper) if deeper or self.first in tensors else []


BLOCK, LEARNER = "transformer.resblocks.{}.VPT_shallow", "prompt_learner."
CONTEXT = LEARNER + "ctx"
PROJECTION = LEARNER + "compound_prompt_projections.{}."
STACKS = {
    JOINT: (
        Stack("text", "context", CONTEXT, f"text_encoder.{BLOCK}", 1),
        Stack("visual", "tokens", "image_encoder.VPT", f"image_encoder.{BLOCK}", 1),
    ),
    COUPLED: (
        Stack("text", "context", CONTEXT, LEARNER + "compound_prompts_text.{}", 0),
        Stack("coupling", "kernel", LEARNER + "proj.weight", PROJECTION + "weight", 0, True),
        Stack("coupling", "bias", LEARNER + "proj.bias", PROJECTION + "bias", 0),
    ),
}
# Where PromptSRC's code keeps the image tower that it holds the prompted one to.
FROZEN_TOWER = "prompt_learner.ZS_image_encoder."
# CLIP's own tensors, and buffers that belong to the classes of the training.
LEFT = re.compile(
    r"(logit_scale|prompt_learner\.token_(prefix|suffix)"
    r"|(image_encoder|text_encoder|prompt_learner\.ZS_image_encoder)\."
    r"(class_embedding|positional_embedding|proj|text_projection|conv1\.weight"
    r"|(ln_pre|ln_post|ln_final|transformer\.resblocks\.\d+\.(ln_1|ln_2|attn|mlp))\..+))"
)


def whole(modules: Iterable[str]) -> str | None:
    """Return which of a checkpoint's modules has the whole CLIP in it, None for those of DPT."""
    return next((module for module in modules if module in STACKS), None)


def method_of(module: str, tensors: Iterable[str]) -> str:
    """Return the method whose module has tensors of these names."""
    if module == COUPLED:
        return "maple"
    return "promptsrc" if any(name.startswith(FROZEN_TOWER) for name in tensors) else "ivlp"


def account(module: str, tensors: Tensors, directory: pathlib.Path) -> None:
    """Raise UserError where the module has a tensor that would be left over."""
    folder = directory / module
    known = {
        name
        for name in tensors
        if any(name == stack.first or stack.is_deep(name) for stack in STACKS[module])
    }
    more = sorted(name for name in set(tensors) - known if not LEFT.fullmatch(name))
    if more:
        raise UserError(
            f"{folder}: tensor {more[0]} is none of the published code's, so what it is for is "
            "not known, and nothing was converted."
        )
    if not known:
        raise UserError(f"{folder}: there is no learned tensor in it, such as {CONTEXT}.")


def prompts_from_module(module: str, tensors: Tensors) -> Parts:
    """Return the tree of prompts from the state dict of a module.

    Raise KeyError with the name of a tensor that is missing.
    """
    prompts: Parts = {}
    for stack in STACKS[module]:
        if names := stack.names_in(tensors):
            layers = [tensors[name].T if stack.transposed else tensors[name] for name in names]
            prompts.setdefault(stack.part, {})[stack.leaf] = np.stack(layers)
    return prompts


def module_from_prompts(module: str, prompts: Parts) -> Tensors:
    """Return the learned tensors of a module: the inverse of `prompts_from_module`.

    That code keeps CLIP's own where a file does not have them.
    """
    tensors: Tensors = {}
    for stack in STACKS[module]:
        if stack.part in prompts:
            layers = prompts[stack.part][stack.leaf]
            for name, layer in zip(stack.names(len(layers)), layers, strict=True):
                tensors[name] = layer.T if stack.transposed else layer
    return tensors
