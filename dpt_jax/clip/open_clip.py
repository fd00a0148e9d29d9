"""open_clip_config.json, which describes a model and its preprocessing in open_clip's words."""

import json
from typing import Any

from etils import epath

from dpt_jax.clip.config import (
    CLIPConfig,
    Description,
    TransformerConfig,
    check_sizes,
    read_json,
    section,
    square,
    values,
)
from dpt_jax.clip.preprocessing import MEAN, STD, Preprocessing, channels
from dpt_jax.clip.tokenizer import TOKENIZER_FILE, Tokenizer
from dpt_jax.errors import UserError
from dpt_jax.io import write_whole

CONFIG_FILE, WEIGHTS_FILE = "open_clip_config.json", "open_clip_model.safetensors"
EPS = 1e-5  # of layer norms, by default
# Sizes with open_clip's defaults.
_VISION: dict[str, Any] = {"image_size": 224, "patch_size": 16, "width": 768, "head_width": 64}
_TEXT: dict[str, Any] = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8}
_BOTH: dict[str, Any] = {"layers": 12, "mlp_ratio": 4.0}
# Keys that change nothing in a finished CLIP with two plain transformers.
_NEUTRAL = {
    *("custom_text", "init_logit_scale", "cast_dtype", "output_dict"),
    *("patch_dropout", "output_tokens", "attn_pooler_queries", "attn_pooler_heads"),
    *("timm_model_pretrained", "timm_pool", "timm_proj", "timm_drop", "timm_drop_path"),
    *("pad_id", "eos_id", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type"),
}
# Keys with the values that a plain tower may have.
_PLAIN: dict[str, Any] = {
    "vision_cfg": {"pool_type": ("tok",)},
    "text_cfg": {"pool_type": ("argmax", "eos")},
    "both": {
        "pos_embed_type": ("learnable",),
        "proj_type": ("linear",),
        "block_type": ("default",),
        "tokenizer_mode": ("clip",),
    },
}


def read_description(file: epath.Path) -> Description:
    """Return what an open_clip_config.json says; keys that are missing have open_clip's defaults.

    Raises:
      UserError: naming the key, for another kind of model or a value that is not supported.
    """
    raw, where = read_json(file), f"{file}: "
    model, where = section(raw, "model_cfg", where), f"{where}model_cfg."
    if not model:
        raise UserError(f"{where[:-1]} is missing.")
    sizes = values(model, {"embed_dim": 0, "quick_gelu": False}, where)
    activation = "quick_gelu" if sizes["quick_gelu"] else "gelu"
    vision = _tower(model, "vision_cfg", _VISION | _BOTH, where)
    text = _tower(model, "text_cfg", _TEXT | _BOTH, where)
    _refuse_others(model, where, {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg"})
    if vision["width"] % vision["head_width"]:
        raise UserError(
            f"{where}vision_cfg.head_width of {vision['head_width']} does not divide the width of "
            f"{vision['width']}."
        )
    config = CLIPConfig(
        embed_dim=sizes["embed_dim"],
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        vision=_sizes(vision, vision["width"] // vision["head_width"], activation),
        text=_sizes(text, text["heads"], activation),
        vocab_size=text["vocab_size"],
        context_length=text["context_length"],
        preprocessing=_preprocessing(raw, vision["image_size"], f"{file}: "),
    )
    check_sizes(config, file)
    own = section(model, "text_cfg", where)
    by_end = own.get("pool_type") == "eos"
    return Description(config, values(own, {"eos_id": 2}, where)["eos_id"] if by_end else None)


def write_config(config: CLIPConfig, tokenizer: Tokenizer, folder: epath.Path) -> None:
    """Write what a model folder has besides the weights."""
    pixels, size = config.preprocessing, config.image_size

    def tower(part: TransformerConfig) -> dict[str, Any]:
        sizes = {"width": part.width, "layers": part.layers}
        return {
            **sizes,
            "mlp_ratio": part.mlp_width / part.width,
            **({} if part.layer_norm_eps == EPS else {"norm_kwargs": {"eps": part.layer_norm_eps}}),
        }

    vision = {
        "image_size": size,
        "patch_size": config.patch_size,
        "head_width": config.vision.width // config.vision.heads,
    }
    text = {
        "context_length": config.context_length,
        "vocab_size": config.vocab_size,
        "heads": config.text.heads,
    }
    raw = {
        "model_cfg": {
            "embed_dim": config.embed_dim,
            "quick_gelu": config.vision.activation == "quick_gelu",
            "vision_cfg": vision | tower(config.vision),
            "text_cfg": text | tower(config.text),
        },
        "preprocess_cfg": {
            "size": [size, size],
            "mode": "RGB",
            "mean": list(pixels.mean),
            "std": list(pixels.std),
            "interpolation": pixels.interpolation,
            "resize_mode": "shortest" if pixels.resize == "crop" else "squash",
        },
    }
    write_whole(folder / TOKENIZER_FILE, tokenizer.file)
    write_whole(folder / CONFIG_FILE, json.dumps(raw, indent=2))


def _tower(model: dict[str, Any], name: str, sizes: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the sizes of a tower.  Raise UserError if it is not a plain transformer."""
    raw, where = section(model, name, where), f"{where}{name}."
    for key, kind in {
        "timm_model_name": "an image tower of timm",
        "eva_model_name": "an EVA image tower",
        "hf_model_name": "a text tower of transformers",
        "hf_tokenizer_name": "a tokenizer of transformers",
    }.items():
        if raw.get(key):
            raise UserError(f"{where}{key} is {raw[key]!r}: a CLIP with {kind} is not supported.")
    if isinstance(raw.get("layers"), list):
        raise UserError(
            f"{where}layers is a list: a CLIP with a ResNet image tower has no prompts."
        )
    sides = {key: square(raw[key]) for key in ("image_size", "patch_size") if key in raw}
    found = values(raw | sides, sizes, where)
    norm = section(raw, "norm_kwargs", where)
    found |= values(norm, {"eps": EPS}, f"{where}norm_kwargs.")
    if other := sorted(norm.keys() - {"eps"}):
        raise UserError(f"{where}norm_kwargs.{other[0]} is not supported.")
    plain: dict[str, Any] = {**_PLAIN[name], **_PLAIN["both"]}
    for key in plain:
        if raw.get(key) and raw[key] not in plain[key]:
            raise UserError(f"{where}{key} is {raw[key]!r}, not {' or '.join(plain[key])}.")
    _refuse_others(raw, where, {*sizes, *plain, "norm_kwargs"})
    return found


def _refuse_others(fields: dict[str, Any], where: str, known: set[str]) -> None:
    """Raise UserError for a key that is not known, unless its value leaves the part out."""
    for key, value in fields.items():
        if value and key not in known | _NEUTRAL:
            raise UserError(f"{where}{key} is {value!r}: a CLIP with it is not supported.")


def _sizes(fields: dict[str, Any], heads: int, activation: str) -> TransformerConfig:
    width = fields["width"]
    mlp_width = int(width * fields["mlp_ratio"])
    return TransformerConfig(
        width, fields["layers"], heads, mlp_width, activation, float(fields["eps"])
    )


def _preprocessing(raw: dict[str, Any], image_size: int, where: str) -> Preprocessing:
    given, where = section(raw, "preprocess_cfg", where), f"{where}preprocess_cfg."
    given = {key: value for key, value in given.items() if value is not None}
    allowed = {
        "size": (image_size, [image_size, image_size]),
        "mode": ("RGB",),
        # "random" draws one of the other two in training, and is bicubic in evaluation.
        "interpolation": ("bicubic", "bilinear", "random"),
        "resize_mode": ("shortest", "squash"),
    }
    for key, choices in allowed.items():
        if given.get(key, choices[0]) not in choices:
            raise UserError(f"{where}{key} is {given[key]!r}, not {choices[0]!r}.")
    # fill_color is only of the resize_mode "longest".
    _refuse_others(given, where, {*allowed, "mean", "std", "fill_color"})
    return Preprocessing(
        channels(given.get("mean", list(MEAN)), f"{where}mean"),
        channels(given.get("std", list(STD)), f"{where}std", positive=True),
        "bilinear" if given.get("interpolation") == "bilinear" else "bicubic",
        "squash" if given.get("resize_mode") == "squash" else "crop",
    )
