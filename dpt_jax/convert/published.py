"""Checkpoints of the published PyTorch code: which tensor is which array of the prompts.

The code of CoOp, CoCoOp, KgCoOp, VPT, VLP and DPT saves the state dict of each learned module. That
of IVLP, PromptSRC and MaPLe saves one module, which contains the whole CLIP.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import NamedTuple

import flax.traverse_util
import numpy as np

from dpt_jax.clip.files import Tensors, read_torch_file
from dpt_jax.errors import UserError
from dpt_jax.prompts import Prompts

TEXT = "prompt_learner"
VISUAL = "image_encoder.transformer.ctx_learner"
CAVPT = "image_encoder.transformer.extractor"
JOINT = "VLPromptLearner"  # of IVLP and PromptSRC
COUPLED = "MultiModalPromptLearner"  # of MaPLe


class Entry(NamedTuple):
    """One array of the prompts, and its tensors in a published module.

    Attributes:
      path: Path of the array in the tree of prompts.
      name: Name of the tensor. With {}, each layer of the array has a tensor of its own.
      first: Name of the tensor of the first layer, if it does not follow `name`.
      number: Number of the first layer whose name follows `name`.
    """

    path: str
    name: str
    first: str = ""
    number: int = 0

    @property
    def transposed(self) -> bool:
        """Whether the tensor is the weight of a torch.nn.Linear, which is (outputs, inputs)."""
        return self.path.endswith(".kernel")

    @property
    def stacked(self) -> bool:
        """Whether the first axis of the array is that of the layers."""
        return bool(self.first) or "{}" in self.name

    def names(self, layers: int) -> list[str]:
        """Return the names of the tensors of an array with this number of layers."""
        if not self.stacked:
            return [self.name]
        first = [self.first] if self.first else []
        numbers = range(self.number, self.number + layers - len(first))
        return [*first, *map(self.name.format, numbers)]

    def names_in(self, tensors: Tensors) -> list[str]:
        """Return the names that a state dict with these tensors should have; [] for none."""
        pattern = re.escape(self.name).replace(r"\{\}", r"\d+")
        found = sum(bool(re.fullmatch(pattern, name)) for name in tensors)
        if not found and self.first not in tensors:
            return []
        return self.names(found + bool(self.first))


def _linear(path: str, name: str) -> tuple[Entry, Entry]:
    return Entry(f"{path}.kernel", f"{name}.weight"), Entry(f"{path}.bias", f"{name}.bias")


def _norm(path: str, name: str) -> tuple[Entry, Entry]:
    return Entry(f"{path}.scale", f"{name}.weight"), Entry(f"{path}.bias", f"{name}.bias")


_DEEP = "{}.transformer.resblocks.{{}}.VPT_shallow".format
_COUPLING = "prompt_learner.compound_prompt_projections.{}"
ENTRIES: dict[str, tuple[Entry, ...]] = {
    TEXT: (
        Entry("text.context", "", first="ctx"),
        *_linear("meta_net.linear1", "meta_net.linear1"),
        *_linear("meta_net.linear2", "meta_net.linear2"),
    ),
    VISUAL: (Entry("visual.tokens", "ctx"),),
    CAVPT: (
        Entry("cavpt.global_tokens", "ctx"),
        *_linear("cavpt.class_projection", "meta_nets.{}"),
        Entry("cavpt.query.kernel", "attns.{}.qmlp.weight"),
        Entry("cavpt.key.kernel", "attns.{}.kmlp.weight"),
        Entry("cavpt.value.kernel", "attns.{}.vmlp.weight"),
        *_norm("cavpt.ln_classifier", "lns.{}"),
        Entry("cavpt.classifier.kernel", "classfiers.{}.weight"),
        *_norm("cavpt.ln_prompt", "lns2.{}"),
    ),
    JOINT: (
        Entry("text.context", _DEEP("text_encoder"), "prompt_learner.ctx", 1),
        Entry("visual.tokens", _DEEP("image_encoder"), "image_encoder.VPT", 1),
    ),
    COUPLED: (
        Entry("text.context", "prompt_learner.compound_prompts_text.{}", "prompt_learner.ctx"),
        Entry("coupling.kernel", f"{_COUPLING}.weight", "prompt_learner.proj.weight"),
        Entry("coupling.bias", f"{_COUPLING}.bias", "prompt_learner.proj.bias"),
    ),
}
# Tensors that are not converted: buffers of the training's class names, tensors of KgCoOp's file
# that its code does not use, and CLIP itself.
BUFFERS = r"token_(prefix|suffix)"
UNUSED_BY_KGCOOP = ("bias_vectors", "meta_net.linear1.weight", "meta_net.linear1.bias")
FROZEN_TOWER = "prompt_learner.ZS_image_encoder."  # in PromptSRC's file only
WHOLE_CLIP = (
    rf"logit_scale|prompt_learner\.{BUFFERS}"
    r"|(image_encoder|text_encoder|prompt_learner\.ZS_image_encoder)\."
    r"(class_embedding|positional_embedding|proj|text_projection|conv1\.weight"
    r"|(ln_pre|ln_post|ln_final|transformer\.resblocks\.\d+\.(ln_1|ln_2|attn|mlp))\..+)"
)
IGNORED = {TEXT: BUFFERS, JOINT: WHOLE_CLIP, COUPLED: WHOLE_CLIP}


def read_published(directory: pathlib.Path) -> tuple[int, dict[str, Tensors]]:
    """Read the last epoch that all modules of a checkpoint folder have, else the best model.

    Returns:
      The epoch, and the state dict of each module.

    Raises:
      UserError: There is no such checkpoint, or there are two methods.
    """
    folders = [directory / name for name in ENTRIES if (directory / name).is_dir()]
    if not folders:
        raise UserError(
            f"{directory} is not a folder with one of {', '.join(ENTRIES)}, so it is not a "
            "checkpoint of the published code."
        )
    if folders[-1].name in (JOINT, COUPLED) and len(folders) > 1:
        raise UserError(
            f"{directory} holds checkpoints of two methods ({folders[0].name} and "
            f"{folders[-1].name}): give a folder with one of them."
        )

    def epochs(folder: pathlib.Path) -> set[int]:
        names = (re.fullmatch(r"model\.pth\.tar-(\d+)", file.name) for file in folder.iterdir())
        return {int(found[1]) for found in names if found}

    last = max(set.intersection(*map(epochs, folders)), default=None)
    name = "model-best.pth.tar" if last is None else f"model.pth.tar-{last}"
    modules, epoch = {}, None
    for folder in folders:
        if not (folder / name).exists():
            raise UserError(
                f"{folder} has no {name}, and no epoch in common with the other folders."
            )
        modules[folder.name], epoch = read_torch_file(folder / name)
    return last or epoch or 0, modules


def method_of(modules: Mapping[str, Tensors]) -> str | None:
    """Return the method of a checkpoint, None for CoOp, VPT, VLP and DPT.

    Those four are told apart by the modules that they have.
    """
    if COUPLED in modules:
        return "maple"
    if JOINT in modules:
        frozen = any(name.startswith(FROZEN_TOWER) for name in modules[JOINT])
        return "promptsrc" if frozen else "ivlp"
    tensors = modules.get(TEXT, {})
    if UNUSED_BY_KGCOOP[0] in tensors:
        return "kgcoop"
    return "cocoop" if any(name.startswith("meta_net.") for name in tensors) else None


def prompts_from_published(
    modules: Mapping[str, Tensors], directory: pathlib.Path | None = None
) -> Prompts:
    """Return the prompts of a checkpoint as a tree of float32 arrays.

    Args:
      modules: The state dict of each module.
      directory: Folder of the checkpoint, for messages.

    Raises:
      UserError: A tensor is missing, or does not belong to the published code.
    """
    arrays: dict[str, np.ndarray] = {}
    for module, tensors in modules.items():
        where = f"{directory}: {module}" if directory else module
        left = set(tensors)
        if module == TEXT and UNUSED_BY_KGCOOP[0] in left:
            left -= {*UNUSED_BY_KGCOOP}
        learned = {name: tensors[name] for name in left}
        names = {entry: entry.names_in(learned) for entry in ENTRIES[module]}
        # A part is complete or missing, and the first one is never missing.
        parts = {entry.path.partition(".")[0] for entry, found in names.items() if found}
        parts |= {ENTRIES[module][0].path.partition(".")[0]}
        for entry, found in names.items():
            if entry.path.partition(".")[0] not in parts:
                continue
            if missing := [name for name in found or entry.names(1) if name not in learned]:
                raise UserError(f"{where}: tensor {missing[0]} is missing.")
            left -= {*found}
            layers = [tensors[name].T if entry.transposed else tensors[name] for name in found]
            arrays[entry.path] = np.stack(layers) if entry.stacked else layers[0]
        more = sorted(name for name in left if not re.fullmatch(IGNORED.get(module, ""), name))
        if more:
            raise UserError(
                f"{where}: tensor {more[0]} is not part of the published code, so nothing was "
                "converted."
            )
    # If CAVPT begins at the first layer, the published visual prompt has no layers.
    arrays = {path: x for path, x in arrays.items() if path != "visual.tokens" or len(x)}
    as_float = {path: np.asarray(x, np.float32, order="C") for path, x in arrays.items()}
    return flax.traverse_util.unflatten_dict(as_float, sep=".")


def module_from_prompts(module: str, prompts: Prompts) -> Tensors:
    """Return the learned tensors of a module: inverse of `prompts_from_published`.

    CLIP, which some of the files contain too, is left out: the published code then uses its own.
    """
    tensors: Tensors = {}
    arrays = flax.traverse_util.flatten_dict(prompts, sep=".")
    for entry in ENTRIES[module]:
        if entry.path in arrays:
            array = arrays[entry.path]
            layers = array if entry.stacked else array[None]
            for name, layer in zip(entry.names(len(layers)), layers, strict=True):
                tensors[name] = np.ascontiguousarray(layer.T if entry.transposed else layer)
    return tensors
