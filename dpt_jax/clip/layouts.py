"""How a weight file names its tensors: as transformers, or as OpenAI and open_clip.

Everything passes through the names of transformers' CLIPModel; `common_names`
renames the others to them, and refuses the models that are no plain CLIP ViT.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from etils import epath

from dpt_jax.clip.files import Tensors
from dpt_jax.errors import UserError

# (OpenAI's, transformers'): parts of names, longer before those they contain.
_OPENAI_PARTS = (
    ("visual.transformer.resblocks.", "vision_model.encoder.layers."),
    ("transformer.resblocks.", "text_model.encoder.layers."),
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".attn.out_proj.", ".self_attn.out_proj."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
    ("visual.ln_pre.", "vision_model.pre_layrnorm."),
    ("visual.ln_post.", "vision_model.post_layernorm."),
    ("ln_final.", "text_model.final_layer_norm."),
    ("visual.conv1.", "vision_model.embeddings.patch_embedding."),
    ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
    ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("token_embedding.", "text_model.embeddings.token_embedding."),
)
_OPENAI_TRANSPOSED = {
    "visual.proj": "visual_projection.weight",
    "text_projection": "text_projection.weight",
}
# Beginnings of names that no plain CLIP has, and what has them.
_OTHER_MODELS = {
    "visual.layer1.": "a CLIP with a ResNet image tower; only ViT image towers take prompts",
    "visual.attnpool.": "a CLIP with a ResNet image tower; only ViT image towers take prompts",
    "visual.trunk.": "a CLIP with an image tower of timm, which is not supported",
    "visual.attn_pool.": "a CLIP with attentional pooling, which is not supported",
    "visual.blocks.": "an EVA CLIP, which is not supported",
    "text_decoder.": "a CoCa, which is not supported",
    "text.transformer.embeddings.": "a CLIP with a text tower of transformers, not supported",
    "text.transformer.encoder.": "a CLIP with a text tower of transformers, not supported",
    "image_encoder.": "a MobileCLIP in Apple's own layout, which is not supported",
    "vision_model.head.": "a SigLIP, which is not supported",
    "logit_bias": "a SigLIP, which is not supported",
}
_PREFIXES = ("module.", "_orig_mod.")  # of training on several devices, of torch.compile
# Buffers that OpenAI's archives and older versions of the libraries write; no weights.
_OPENAI_SIZES = ("input_resolution", "context_length", "vocab_size")
_BUFFERS = {"attn_mask", *_OPENAI_SIZES}


def plain_names(tensors: Tensors, file: epath.Path) -> tuple[Tensors, str, str]:
    """Return the tensors without the prefixes of their names, and these: (…, of all, of the text).

    Raise UserError for a model of another kind, named by what its names say.
    """
    prefix = ""
    while found := next((p for p in _PREFIXES if tensors and _all_begin(tensors, p)), ""):
        prefix += found
        tensors = {name.removeprefix(found): value for name, value in tensors.items()}
    for name in tensors:
        for begins, what in _OTHER_MODELS.items():
            if name.startswith(begins):
                raise UserError(f"{file} is {what} (tensor {prefix}{name}).")
        if ".lora_" in name:
            raise UserError(
                f"{file} is a LoRA adapter (tensor {prefix}{name}): merge it into its model first."
            )
    text = "text." if any(name.startswith("text.") for name in tensors) else ""
    plain: Tensors = {}
    for name, value in tensors.items():
        short = name.removeprefix(text)
        if short in plain:
            raise UserError(f"{file} has tensor {short} twice, with and without {text!r}.")
        if short not in _BUFFERS and not short.endswith(".position_ids"):
            plain[short] = value
    return plain, prefix, text


def _all_begin(names: Tensors, prefix: str) -> bool:
    return all(name.startswith(prefix) for name in names)


class Named(NamedTuple):
    """Tensors under the names of transformers' CLIPModel.

    spell: what the file calls a tensor, given its name here. openai: whether
    the file is one of OpenAI's own archives.
    """

    tensors: Tensors
    spell: Callable[[str], str]
    openai: bool


def common_names(tensors: Tensors, file: epath.Path) -> Named:
    """Return a file's tensors under transformers' names.

    Raise UserError for a model of another kind, named by what its names say.
    """
    plain, prefix, text = plain_names(tensors, file)
    openai = all(name in tensors for name in _OPENAI_SIZES)
    if not any(name.startswith("visual.") for name in plain):
        return Named(plain, lambda name: prefix + name, False)

    def spell(name: str) -> str:
        short = openai_name(name)
        of_text = not short.startswith("visual.") and short != "logit_scale"
        return prefix + (text if of_text else "") + short

    return Named(openai_to_transformers(plain, file), spell, openai)


def openai_to_transformers(tensors: Tensors, file: epath.Path) -> Tensors:
    """Return OpenAI's state dict under the names of transformers' CLIPModel."""
    renamed: Tensors = {}

    def put(new: str, value: np.ndarray, name: str) -> None:
        if new in renamed:
            raise UserError(f"{file} has tensor {name} twice, also as {new}.")
        renamed[new] = value

    for name, value in tensors.items():
        new = _OPENAI_TRANSPOSED.get(name, name)
        if new != name:
            put(new, value.T, name)
            continue
        for theirs, ours in _OPENAI_PARTS:
            if theirs in new and ours not in new:
                new = new.replace(theirs, ours)
        if m := re.match(r"(.*)\.attn\.in_proj_(weight|bias)$", new):
            if not value.ndim or value.shape[0] % 3:
                raise UserError(
                    f"{file}: tensor {name} has shape {value.shape}, which is not three alike."
                )
            for letter, part in zip("qkv", np.split(value, 3), strict=True):
                put(f"{m[1]}.self_attn.{letter}_proj.{m[2]}", part, name)
        else:
            put(new, value, name)
    return renamed


def openai_name(name: str) -> str:
    """Return what OpenAI calls a tensor of transformers' CLIPModel (q, k and v are one there)."""
    for theirs, ours in _OPENAI_TRANSPOSED.items():
        if name == ours:
            return theirs
    name = re.sub(r"\.self_attn\.[qkv]_proj\.", ".attn.in_proj_", name)
    for theirs, ours in _OPENAI_PARTS:
        name = name.replace(ours, theirs)
    return name
