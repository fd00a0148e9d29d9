"""The tensors of the published PyTorch code's checkpoints as prompts, and back.

The code of CoOp, CoCoOp, KgCoOp, VPT, VLP and DPT saves the state dict of each learned module. That
of IVLP, PromptSRC and MaPLe saves one module, which contains the whole CLIP.
"""

import itertools
import pathlib
import re
from collections.abc import Iterator, Mapping
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

    def names(self) -> Iterator[str]:
        """Return the names of the tensors of all layers that a model might have."""
        first = [self.first] if self.first else []
        more = map(self.name.format, itertools.count(self.number)) if self.stacked else [self.name]
        return itertools.chain(first, more)

    @property
    def stacked(self) -> bool:
        """Whether the first axis of the array is that of the layers."""
        return bool(self.first) or "{}" in self.name

    def turned(self, array: np.ndarray) -> np.ndarray:
        """Convert a layer to the other layout: weights of torch.nn.Linear are transposed."""
        return array.T if self.path.endswith(".kernel") else array


def _pair(path: str, name: str, weight: str = "kernel") -> tuple[Entry, Entry]:
    """Return the entries of a layer with a weight and a bias."""
    return Entry(f"{path}.{weight}", f"{name}.weight"), Entry(f"{path}.bias", f"{name}.bias")


_DEEP = "{}.transformer.resblocks.{{}}.VPT_shallow".format
_COUPLING = "prompt_learner.compound_prompt_projections.{}"
ENTRIES: dict[str, tuple[Entry, ...]] = {
    TEXT: (
        Entry("text.context", "", first="ctx"),
        *_pair("meta_net.linear1", "meta_net.linear1"),
        *_pair("meta_net.linear2", "meta_net.linear2"),
    ),
    VISUAL: (Entry("visual.tokens", "ctx"),),
    CAVPT: (
        Entry("cavpt.global_tokens", "ctx"),
        *_pair("cavpt.class_projection", "meta_nets.{}"),
        Entry("cavpt.query.kernel", "attns.{}.qmlp.weight"),
        Entry("cavpt.key.kernel", "attns.{}.kmlp.weight"),
        Entry("cavpt.value.kernel", "attns.{}.vmlp.weight"),
        *_pair("cavpt.ln_classifier", "lns.{}", "scale"),
        Entry("cavpt.classifier.kernel", "classfiers.{}.weight"),
        *_pair("cavpt.ln_prompt", "lns2.{}", "scale"),
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
    """Return the last epoch that all modules of a checkpoint folder have, and their state dicts.

    If they share no epoch, the best model is read. Raise UserError if there is no such checkpoint.
    """
    folders = [directory / name for name in ENTRIES if (directory / name).is_dir()]
    if not folders:
        raise UserError(
            f"{directory} is not a folder with one of {', '.join(ENTRIES)}, so it is not a "
            "checkpoint of the published code."
        )
    epochs = [
        {file.name.removeprefix("model.pth.tar-") for file in folder.iterdir()}
        for folder in folders
    ]
    last = max((int(x) for x in set.intersection(*epochs) if x.isdecimal()), default=0)
    name = f"model.pth.tar-{last}" if last else "model-best.pth.tar"
    read = {folder.name: read_torch_file(folder / name) for folder in folders}
    best = next(iter(read.values()))[1]
    return last or best or 0, {module: tensors for module, (tensors, _) in read.items()}


def method_of(modules: Mapping[str, Tensors]) -> str | None:
    """Return the method of a checkpoint.

    None for CoOp, VPT, VLP and DPT, which are told apart by the modules that they have.
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
    """Return the prompts in the state dicts of modules as a tree of float32 arrays.

    directory: of the checkpoint, for messages. Raise UserError if a tensor does not belong to the
    published code, or a module lacks its prompt.
    """
    arrays: dict[str, np.ndarray] = {}
    for module, tensors in modules.items():
        ignored = IGNORED.get(module, "")
        if module == TEXT and UNUSED_BY_KGCOOP[0] in tensors:
            ignored = f"{BUFFERS}|{'|'.join(map(re.escape, UNUSED_BY_KGCOOP))}"
        learned = {x: tensors[x] for x in tensors if not re.fullmatch(ignored, x)}
        used: set[str] = set()
        for number, entry in enumerate(ENTRIES[module]):
            names = list(itertools.takewhile(learned.__contains__, entry.names()))
            if entry.path in arrays:
                raise UserError(f"{directory} holds checkpoints of two methods: keep one of them.")
            if not names and number == 0:
                raise UserError(f"{directory}: {module} has no tensor {next(entry.names())}.")
            layers = [entry.turned(tensors[name]) for name in names]
            used.update(names)
            if layers:
                arrays[entry.path] = np.stack(layers) if entry.stacked else layers[0]
        if more := sorted(learned.keys() - used):
            raise UserError(
                f"{directory}: {module}: tensor {more[0]} is not part of the published code, or "
                "that of the layer before it is missing, so nothing was converted."
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
            layers = array if entry.stacked else [array]
            for name, layer in zip(entry.names(), layers, strict=False):
                tensors[name] = np.ascontiguousarray(entry.turned(layer))
    return tensors
