"""Checkpoints with the tensor names of the published codes, for the small CLIP."""

import pathlib
from collections.abc import Mapping

import numpy as np

from dpt_jax.convert.published import CAVPT, COUPLED, JOINT, TEXT, VISUAL
from tests.helpers.published_files import write_module

LAYERS, WIDTH, EMBED, CLASSES = 4, 128, 64, 6
EPOCH = 3
Tensors = dict[str, np.ndarray]


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


BUFFERS = {"token_prefix": normal(37, 1, WIDTH), "token_suffix": normal(37, 72, WIDTH)}
# Of a module that has the whole CLIP in it, a tensor of each kind.
WHOLE_CLIP = {
    "logit_scale": normal(),
    "prompt_learner.token_prefix": normal(37, 1, WIDTH),
    "image_encoder.conv1.weight": normal(WIDTH, 3, 8, 8),
    "image_encoder.ln_pre.weight": normal(WIDTH),
    "image_encoder.transformer.resblocks.0.attn.in_proj_weight": normal(3 * WIDTH, WIDTH),
    "text_encoder.transformer.resblocks.2.mlp.c_fc.bias": normal(4 * WIDTH),
    "text_encoder.text_projection": normal(WIDTH, EMBED),
}
FROZEN_TOWER = {"prompt_learner.ZS_image_encoder.proj": normal(WIDTH, EMBED)}


def cavpt(layers: int) -> Tensors:
    """The class-aware prompts of the last layers."""
    tensors = {"ctx": normal(layers, 10, WIDTH)}
    for i in range(layers):
        shapes = {
            "meta_nets.{}.weight": (WIDTH, EMBED),
            "meta_nets.{}.bias": (WIDTH,),
            "attns.{}.kmlp.weight": (32, WIDTH),
            "attns.{}.qmlp.weight": (32, WIDTH),
            "attns.{}.vmlp.weight": (WIDTH, WIDTH),
            "lns.{}.weight": (WIDTH,),
            "lns.{}.bias": (WIDTH,),
            "classfiers.{}.weight": (CLASSES, WIDTH),
            "lns2.{}.weight": (WIDTH,),
            "lns2.{}.bias": (WIDTH,),
        }
        tensors |= {name.format(i): normal(*shape) + i for name, shape in shapes.items()}
    return tensors


def joint(text_length: int, text_depth: int, visual_length: int, visual_depth: int) -> Tensors:
    """The prompts of IVLP and PromptSRC."""
    tensors = {"prompt_learner.ctx": normal(text_length, WIDTH)}
    for i in range(1, text_depth):
        name = f"text_encoder.transformer.resblocks.{i}.VPT_shallow"
        tensors[name] = normal(text_length, WIDTH) + i
    if visual_depth:
        tensors["image_encoder.VPT"] = normal(visual_length, WIDTH)
    for i in range(1, visual_depth):
        name = f"image_encoder.transformer.resblocks.{i}.VPT_shallow"
        tensors[name] = normal(visual_length, WIDTH) + i
    return tensors


def coupled(length: int, depth: int) -> Tensors:
    """The prompts of MaPLe."""
    tensors = {"prompt_learner.ctx": normal(length, WIDTH)}
    for i in range(depth):
        name = f"prompt_learner.compound_prompt_projections.{i - 1}" if i else "prompt_learner.proj"
        tensors[f"{name}.weight"] = normal(WIDTH, WIDTH) + i
        tensors[f"{name}.bias"] = normal(WIDTH) + i
        if i:
            tensors[f"prompt_learner.compound_prompts_text.{i - 1}"] = normal(length, WIDTH) + i
    return tensors


def conditioned(length: int) -> Tensors:
    """The prompts of CoCoOp."""
    hidden = EMBED // 16
    return {
        "ctx": normal(length, WIDTH),
        "meta_net.linear1.weight": normal(hidden, EMBED),
        "meta_net.linear1.bias": normal(hidden),
        "meta_net.linear2.weight": normal(WIDTH, hidden),
        "meta_net.linear2.bias": normal(WIDTH),
    }


# By the method: its modules with what it learns, and the other tensors of the last one.
CHECKPOINTS: dict[str, tuple[dict[str, Tensors], Tensors]] = {
    "coop, of each class": ({TEXT: {"ctx": normal(CLASSES, 5, WIDTH)}}, BUFFERS),
    "cocoop": ({TEXT: conditioned(4)}, BUFFERS),
    "vlp": ({VISUAL: {"ctx": normal(LAYERS, 3, WIDTH)}, TEXT: {"ctx": normal(4, WIDTH)}}, BUFFERS),
    "dpt": (
        {
            CAVPT: cavpt(2),
            VISUAL: {"ctx": normal(LAYERS - 2, 3, WIDTH)},
            TEXT: {"ctx": normal(4, WIDTH)},
        },
        BUFFERS,
    ),
    # From the first layer on: the code saves a visual prompt of no layers all the same.
    "dpt, all layers": (
        {
            CAVPT: cavpt(LAYERS),
            VISUAL: {"ctx": np.zeros((0, 10, WIDTH), np.float32)},
            TEXT: {"ctx": normal(4, WIDTH)},
        },
        BUFFERS,
    ),
    "promptsrc": ({JOINT: joint(4, 2, 4, 2)}, WHOLE_CLIP | FROZEN_TOWER),
    "maple": ({COUPLED: coupled(2, 3)}, WHOLE_CLIP),
    # Six tokens of context cannot have started from the four words.
    "ivlp, long": ({JOINT: joint(6, 2, 3, 4)}, WHOLE_CLIP),
}


def write(
    directory: pathlib.Path,
    modules: Mapping[str, Tensors],
    others: Mapping[str, np.ndarray] | None = None,
    epoch: int = EPOCH,
) -> pathlib.Path:
    """Write the modules of a checkpoint, the other tensors with the last one."""
    for module, tensors in modules.items():
        last = module == list(modules)[-1]
        write_module(directory, module, {**tensors, **((others or {}) if last else {})}, epoch)
    return directory
