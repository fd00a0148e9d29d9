"""config.json of transformers' CLIPModel as our sizes, and back."""

import dataclasses
from typing import Any

from etils import epath

from dpt_jax.clip.blocks import ACTIVATIONS
from dpt_jax.clip.config import CLIPConfig, Description, TransformerConfig, check_sizes
from dpt_jax.clip.json_files import Section, read_json
from dpt_jax.clip.processors import read_processor
from dpt_jax.errors import UserError

CONFIG_FILE = "config.json"
# Those of transformers' CLIPConfig, whose import takes PyTorch with it where that is installed.
_COMMON = {"num_hidden_layers": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "text_config": {
        **_COMMON,
        **{"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048},
        **{"vocab_size": 49408, "max_position_embeddings": 77},
    },
    "vision_config": {
        **_COMMON,
        **{"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
        **{"image_size": 224, "patch_size": 32},
    },
}
# The first configurations had this end of text; their models take the highest id for it.
_OLD_END = 2


def read_description(file: epath.Path) -> Description:
    """Return what a config.json says, with the image processor that is in its folder.

    Keys that are missing are as in transformers' CLIPConfig. Raise UserError
    for a model of another type, and for a value that cannot be.
    """
    raw = read_json(file)
    kind = raw.get("model_type")
    if kind != "clip":
        raise UserError(
            f"{file} describes a model of type {kind!r}; only CLIP with a ViT image tower is "
            "supported."
        )
    vision, text = _part(raw, "vision_config"), _part(raw, "text_config")
    if vision.whole("num_channels", 3) != 3:
        raise vision.error("num_channels", "3")
    config = CLIPConfig(
        embed_dim=raw.whole("projection_dim", 512),
        image_size=vision.side("image_size"),
        patch_size=vision.side("patch_size"),
        vision=_tower(vision),
        text=_tower(text),
        vocab_size=text.whole("vocab_size"),
        context_length=text.whole("max_position_embeddings"),
    )
    check_sizes(config, file)
    end = text.whole("eos_token_id", least=0) if text.has("eos_token_id") else None
    processor = read_processor(file.parent, config.image_size)
    config = dataclasses.replace(config, preprocessing=processor)
    return Description(config, None if end == _OLD_END else end)


def _part(raw: Section, name: str) -> Section:
    """Return a tower's fields; older files have a second copy, which transformers lets win."""
    own = raw.section(f"{name}_dict" if raw.has(f"{name}_dict") else name)
    return Section({**_DEFAULTS[name], **own.values}, own.file, own.name)


def _tower(fields: Section) -> TransformerConfig:
    return TransformerConfig(
        width=fields.whole("hidden_size"),
        layers=fields.whole("num_hidden_layers"),
        heads=fields.whole("num_attention_heads"),
        mlp_width=fields.whole("intermediate_size"),
        activation=fields.choice("hidden_act", ACTIVATIONS),
        layer_norm_eps=fields.number("layer_norm_eps"),
    )


def config_to_dict(config: CLIPConfig) -> dict[str, Any]:
    """Return the sizes as a config.json, with the two highest ids as start and end of text."""

    def tower(part: TransformerConfig) -> dict[str, Any]:
        return {
            "hidden_size": part.width,
            "intermediate_size": part.mlp_width,
            "num_hidden_layers": part.layers,
            "num_attention_heads": part.heads,
            "hidden_act": part.activation,
            "layer_norm_eps": part.layer_norm_eps,
            "projection_dim": config.embed_dim,
        }

    end = config.vocab_size - 1
    text = {"vocab_size": config.vocab_size, "max_position_embeddings": config.context_length}
    special = {"bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
    vision = {"image_size": config.image_size, "patch_size": config.patch_size}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.embed_dim,
        "text_config": {"model_type": "clip_text_model", **tower(config.text), **text, **special},
        "vision_config": {"model_type": "clip_vision_model", **tower(config.vision), **vision},
    }
