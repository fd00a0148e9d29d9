"""Checkpoint folders of the published PyTorch code as workdirs, and back.

The code of CoOp, CoCoOp, KgCoOp, VPT, VLP and DPT saves the state dict of each learned module. That
of IVLP, PromptSRC and MaPLe saves one module, which contains the whole CLIP.
"""

import itertools
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax.traverse_util
import numpy as np
from ml_collections import ConfigDict

from dpt_jax import methods
from dpt_jax.clip.config import CLIPConfig
from dpt_jax.clip.files import Tensors, read_torch_file, write_torch_file
from dpt_jax.clip.pretrained import Pretrained, load_clip
from dpt_jax.config import flat, method_config, validate
from dpt_jax.errors import UserError
from dpt_jax.io import make_folder, write_whole
from dpt_jax.logging import say
from dpt_jax.methods import METHODS, ZERO_SHOT
from dpt_jax.prompts import Prompts
from dpt_jax.prompts.text import context_tokens
from dpt_jax.training.checkpoints import FOLDER, Checkpoints, Saved, load_newest
from dpt_jax.training.saved import check_shapes, result_settings, shapes_of
from dpt_jax.training.setup import clip_fingerprint, make_model
from dpt_jax.training.workdir import CONFIG_FILE, load_config, save_config

TEXT = "prompt_learner"
VISUAL = "image_encoder.transformer.ctx_learner"
CAVPT = "image_encoder.transformer.extractor"
JOINT = "VLPromptLearner"  # of IVLP and PromptSRC
COUPLED = "MultiModalPromptLearner"  # of MaPLe
# Methods whose own code saves other tensors than DPT's code.
OF_OTHER_CODE = ("cocoop", "ivlp", "maple", "promptsrc")
# Settings that belong to the method of a checkpoint; others belong to CLIP and the data.
METHOD_SECTIONS = ("text_prompt.", "visual_prompt.", "cavpt.", "loss.")


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
        """Return a layer as the other side has it: weights of torch.nn.Linear are transposed."""
        return array.T if self.path.endswith(".kernel") else array


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
    """Return the last epoch that all modules of a checkpoint folder have, and their state dicts.

    Without one, it is the best model. Raise UserError if there is no such checkpoint.
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


def convert_reference(
    directory: pathlib.Path, workdir: pathlib.Path, config: ConfigDict, overrides: Mapping[str, Any]
) -> None:
    """Write a workdir with the prompts of a checkpoint folder of published code.

    Args:
      directory: The checkpoint, one folder per module.
      workdir: A new one.
      config: Everything that a checkpoint does not hold. Its method and sizes are set here.
      overrides: Those of its values that were given explicitly. The checkpoint may not differ.
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
    model = make_model(config, ["any"] * classes, pretrained)
    check_shapes(prompts, shapes_of(model), str(source))


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
