"""The model folder of transformers' CLIPModel: config.json and the image processor's file.

CLIPConfig of transformers imports PyTorch if that is installed, which takes a second and 200 MB.
Its defaults are therefore repeated here, and a test compares them.
"""

import dataclasses
import json
from typing import Any

from etils import epath

from dpt_jax.clip.blocks import ACTIVATIONS
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
from dpt_jax.clip.preprocessing import (
    CLIP_PREPROCESSING,
    INTERPOLATIONS,
    MEAN,
    STD,
    Preprocessing,
    channels,
)
from dpt_jax.clip.tokenizer import TOKENIZER_FILE, Tokenizer
from dpt_jax.errors import UserError
from dpt_jax.io import write_whole

CONFIG_FILE = "config.json"
# transformers 5 writes the second one, with the fields of the first one in "image_processor".
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
PROCESSORS = ("CLIPImageProcessor", "CLIPFeatureExtractor")

_TOWER = {"num_hidden_layers": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_TEXT = {
    **_TOWER,
    **{"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048},
    **{"vocab_size": 49408, "max_position_embeddings": 77},
}
_VISION = {
    **_TOWER,
    **{"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    **{"image_size": 224, "patch_size": 32},
}
# The first configurations have this end token, and their models take the highest id instead.
_OLD_END = 2


def read_description(file: epath.Path) -> Description:
    """Return what a config.json and the image processor in its folder say.

    Raises:
      UserError: for a model of another type, or a value that is not supported.
    """
    raw, where = read_json(file), f"{file}: "
    if raw.get("model_type") != "clip":
        raise UserError(
            f"{file} describes a model of type {raw.get('model_type')!r}; only CLIP with a ViT "
            "image tower is supported."
        )
    text, vision = _tower(raw, "text_config", where), _tower(raw, "vision_config", where)
    if vision.get("num_channels", 3) != 3:
        raise UserError(f"{where}vision_config.num_channels is not 3.")
    for key in ("image_size", "patch_size"):
        vision[key] = square(vision.get(key, _VISION[key]))
    end = text.get("eos_token_id")
    if end is not None and type(end) is not int:
        raise UserError(f"{where}text_config.eos_token_id is not a token id.")
    text = values(text, _TEXT, f"{where}text_config.")
    vision = values(vision, _VISION, f"{where}vision_config.")
    config = CLIPConfig(
        embed_dim=values(raw, {"projection_dim": 512}, where)["projection_dim"],
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        vision=_sizes(vision, where),
        text=_sizes(text, where),
        vocab_size=text["vocab_size"],
        context_length=text["max_position_embeddings"],
    )
    check_sizes(config, file)
    processor = read_processor(file.parent, config.image_size)
    config = dataclasses.replace(config, preprocessing=processor)
    return Description(config, None if end == _OLD_END else end)


def _tower(raw: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    """Return the fields of a tower; older files have a second copy, which transformers prefers."""
    return section(raw, name if raw.get(f"{name}_dict") is None else f"{name}_dict", where)


def _sizes(fields: dict[str, Any], where: str) -> TransformerConfig:
    if fields["hidden_act"] not in ACTIVATIONS:
        raise UserError(
            f"{where}hidden_act is {fields['hidden_act']!r}, not one of {', '.join(ACTIVATIONS)}."
        )
    return TransformerConfig(
        width=fields["hidden_size"],
        layers=fields["num_hidden_layers"],
        heads=fields["num_attention_heads"],
        mlp_width=fields["intermediate_size"],
        activation=fields["hidden_act"],
        layer_norm_eps=float(fields["layer_norm_eps"]),
    )


def read_processor(folder: epath.Path, image_size: int) -> Preprocessing:
    """Return the preprocessing of a model folder, OpenAI's if the folder has no processor file.

    Raises:
      UserError: for a processor that is not supported, or of another image size.
    """
    for name in PROCESSOR_FILES:
        file = folder / name
        if file.exists():
            raw, where = read_json(file), f"{file}: "
            if name == PROCESSOR_FILES[1]:
                raw = section(raw, "image_processor", where)
            if raw:
                return _preprocessing(raw, image_size, where)
    return CLIP_PREPROCESSING


def _preprocessing(raw: dict[str, Any], size: int, where: str) -> Preprocessing:
    given = {key: value for key, value in raw.items() if value is not None}
    for key in ("image_processor_type", "feature_extractor_type"):
        name = str(given.get(key, PROCESSORS[0]))
        if name.removesuffix("Fast").removesuffix("Pil") not in PROCESSORS:
            raise UserError(f"{where}the image processor {name} is not supported.")
    steps = {"do_resize": True, "do_rescale": True, "do_normalize": True, "do_center_crop": True}
    steps = values(given, steps, where)
    crop = steps.pop("do_center_crop")
    other = (k for k in given if k.startswith("do_") and k not in (*steps, "do_center_crop"))
    for key in (*(k for k in steps if not steps[k]), *(k for k in other if given[k])):
        if key != "do_convert_rgb":
            raise UserError(f"{where}{key} is {given[key]!r}, which is not supported.")
    if abs(values(given, {"rescale_factor": 1 / 255}, where)["rescale_factor"] * 255 - 1) > 1e-4:
        raise UserError(f"{where}rescale_factor is not 1/255.")
    both, shorter = {"height": size, "width": size}, {"shortest_edge": size}
    sides, cropped = given.get("size", shorter), given.get("crop_size", both)
    if (crop and cropped not in (both, size)) or sides not in (shorter, both, size):
        raise UserError(f"{where}size or crop_size is not the {size} pixels of the image tower.")
    if not crop and sides != both:
        raise UserError(f"{where}do_center_crop is false, and size does not make images square.")
    kernels = {int(code): name for name, code in INTERPOLATIONS.items()}
    kernel = given.get("resample", int(INTERPOLATIONS["bicubic"]))
    if type(kernel) is not int or kernel not in kernels:
        raise UserError(f"{where}resample is {kernel!r}, not the number of a filter of Pillow.")
    return Preprocessing(
        channels(given.get("image_mean", list(MEAN)), f"{where}image_mean"),
        channels(given.get("image_std", list(STD)), f"{where}image_std", positive=True),
        kernels[kernel],
        "squash" if sides == both else "crop",
    )


def write_configs(config: CLIPConfig, tokenizer: Tokenizer, folder: epath.Path) -> None:
    """Write what a model folder has besides the weights."""
    raw = config_to_dict(config)
    raw["text_config"] |= {"bos_token_id": tokenizer.start, "eos_token_id": tokenizer.end}
    raw["text_config"]["pad_token_id"] = tokenizer.end
    processor = processor_to_dict(config.preprocessing, config.image_size)
    write_whole(folder / PROCESSOR_FILES[0], json.dumps(processor, indent=2))
    write_whole(folder / TOKENIZER_FILE, tokenizer.file)
    write_whole(folder / CONFIG_FILE, json.dumps(raw, indent=2))


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


def processor_to_dict(preprocessing: Preprocessing, image_size: int) -> dict[str, Any]:
    """Return the preprocessing as a preprocessor_config.json."""
    both = {"height": image_size, "width": image_size}
    crop = preprocessing.resize == "crop"
    return {
        "image_processor_type": PROCESSORS[0],
        "do_resize": True,
        "size": {"shortest_edge": image_size} if crop else both,
        "resample": int(preprocessing.resample),
        "do_center_crop": crop,
        **({"crop_size": both} if crop else {}),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
        "do_convert_rgb": True,
    }
