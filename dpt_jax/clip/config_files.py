"""Configuration files of a CLIP: those of transformers and of open_clip.

CLIPConfig of transformers imports PyTorch if that is installed, which takes seconds and 200 MB.
"""

import dataclasses
from typing import Any, NamedTuple

from etils import epath
from PIL import Image

from dpt_jax.clip.blocks import ACTIVATIONS
from dpt_jax.clip.config import OPENAI_MODELS, CLIPConfig, TransformerConfig, read_json
from dpt_jax.clip.preprocessing import CLIP_PREPROCESSING, MEAN, STD, Preprocessing
from dpt_jax.clip.tokenizer import Tokenizer
from dpt_jax.io import reading

Fields = dict[str, Any]
CONFIG_FILE, OPEN_CLIP_CONFIG = "config.json", "open_clip_config.json"
# transformers 5 writes the second one, with the fields of the first one in "image_processor".
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_PROCESSORS = (
    *("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil"),
    "CLIPFeatureExtractor",
)
# The fields of TransformerConfig in a config.json.
_TOWER = {
    "width": "hidden_size",
    "mlp_width": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "activation": "hidden_act",
    "layer_norm_eps": "layer_norm_eps",
}
# Early configurations have this end token, but their models take the highest id.
_OLD_END = 2
_OPEN_CLIP_KEYS = {
    # Keys of open_clip's configuration that are read:
    *("embed_dim", "quick_gelu", "vision_cfg", "text_cfg", "size", "mean", "std"),
    *("image_size", "patch_size", "width", "layers", "mlp_ratio"),
    *("norm_kwargs", "eps", "context_length", "vocab_size", "eos_id"),
    # Keys that change nothing in a trained CLIP with two standard transformers:
    *("custom_text", "init_logit_scale", "cast_dtype", "output_dict", "fill_color"),
    *("patch_dropout", "output_tokens", "attn_pooler_queries", "attn_pooler_heads"),
    *("timm_model_pretrained", "timm_pool", "timm_proj", "timm_drop", "timm_drop_path"),
    *("pad_id", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type"),
}
# Other keys, with their supported values. Any key may be empty, which leaves a part out.
_OPEN_CLIP_VALUES = {
    "pool_type": ("tok", "argmax", "eos"),
    "pos_embed_type": ("learnable",),
    "proj_type": ("linear",),
    "block_type": ("default",),
    "tokenizer_mode": ("clip",),
    "mode": ("RGB",),
    # "random" draws one of the other two in training, and is bicubic in evaluation.
    "interpolation": ("bicubic", "bilinear", "random"),
    "resize_mode": ("shortest", "squash"),
}


class Description(NamedTuple):
    """What the configuration files of a model say.

    Attributes:
      config: its sizes.
      end: id of the token at which the text feature is taken; None for the highest id of a text.
    """

    config: CLIPConfig
    end: int | None


def read_transformers(file: epath.Path) -> Description:
    """Return what a config.json and the image processor in its folder say.

    Raises:
      UserError: for a model of another type, or a value that is not supported.
    """
    with reading(file, "a configuration of a CLIP"):
        raw = read_json(file)
        if raw.get("model_type") != "clip":
            raise ValueError(f"model_type is {raw.get('model_type')!r}, not 'clip'")
        # Defaults are those of a ViT-B/32.
        defaults = config_to_dict(OPENAI_MODELS["ViT-B/32"])
        del defaults["text_config"]["eos_token_id"]

        def tower(name: str) -> tuple[Fields, TransformerConfig]:
            # Older files have a second copy, which transformers prefers.
            second = raw.get(f"{name}_dict")
            own = defaults[name] | ((raw.get(name) or {}) if second is None else second)
            if own["hidden_act"] not in ACTIVATIONS:
                raise ValueError(f"hidden_act is {own['hidden_act']!r}, which is not supported")
            return own, TransformerConfig(**{ours: own[key] for ours, key in _TOWER.items()})

        (text, text_sizes), (vision, vision_sizes) = tower("text_config"), tower("vision_config")
        config = CLIPConfig(
            embed_dim=(defaults | raw)["projection_dim"],
            image_size=_side(vision["image_size"]),
            patch_size=_side(vision["patch_size"]),
            vision=vision_sizes,
            text=text_sizes,
            vocab_size=text["vocab_size"],
            context_length=text["max_position_embeddings"],
        )
    processor = read_processor(file.parent, config.image_size)
    end = text.get("eos_token_id")
    config = dataclasses.replace(config, preprocessing=processor)
    return Description(config, None if end == _OLD_END else end)


def read_processor(folder: epath.Path, size: int) -> Preprocessing:
    """Return the preprocessing of a model folder, OpenAI's if the folder has no processor file.

    Raises:
      UserError: for a processor that is not supported, or of another image size.
    """
    for name in PROCESSOR_FILES:
        if (folder / name).exists():
            with reading(folder / name, "an image processor of a CLIP"):
                raw = read_json(folder / name)
                raw = raw if name == PROCESSOR_FILES[0] else raw.get("image_processor", {})
                if raw:
                    return _preprocessing(raw, size)
    return CLIP_PREPROCESSING


def _preprocessing(raw: Fields, size: int) -> Preprocessing:
    """Return the preprocessing of a processor.  Raise ValueError for a step not supported."""
    given = {key: value for key, value in raw.items() if value is not None}
    if not given.get("do_center_crop", True):
        given.pop("crop_size", None)
    both = {"height": size, "width": size}
    squash = given.get("size") == both
    supported: dict[str, tuple[Any, ...]] = {
        **dict.fromkeys(("do_resize", "do_rescale", "do_normalize"), (True,)),
        **dict.fromkeys(("image_processor_type", "feature_extractor_type"), _PROCESSORS),
        "do_convert_rgb": (True, False),
        "do_center_crop": (True, False) if squash else (True,),
        "size": ({"shortest_edge": size}, both, size),
        "crop_size": (both, size),
        "resample": tuple(Image.Resampling),
    }
    for key, value in given.items():
        # A step of an unknown name is supported if it is off.
        if value not in supported.get(key, (False,) if key.startswith("do_") else (value,)):
            raise ValueError(f"{key} is {value!r}, which is not supported for {size} pixels")
    if abs(given.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-4:
        raise ValueError(f"rescale_factor is {given['rescale_factor']}, not 1/255")
    return Preprocessing(
        _channels(given.get("image_mean", MEAN)),
        _channels(given.get("image_std", STD)),
        Image.Resampling(given.get("resample", Image.Resampling.BICUBIC)).name.lower(),
        "squash" if squash else "crop",
    )


def read_open_clip(file: epath.Path) -> Description:
    """Return what an open_clip_config.json says; missing keys have open_clip's defaults.

    Raises:
      UserError: naming the key, for another kind of model or a value that is not supported.
    """
    with reading(file, "open_clip's configuration of a CLIP"):
        raw = read_json(file)
        model, pixels = raw["model_cfg"], raw.get("preprocess_cfg") or {}
        vision, text = model["vision_cfg"], model["text_cfg"]
        norms = [tower.get("norm_kwargs") or {} for tower in (vision, text)]
        # A tower has one of these two keys.
        towers = vision | {"head_width": None}, text | {"heads": None}
        for part in (model, *towers, pixels, *norms):
            for key, value in part.items():
                known = key in _OPEN_CLIP_KEYS or value in _OPEN_CLIP_VALUES.get(key, ())
                if value and not known:
                    raise ValueError(f"{key} is {value!r}, which is not supported")

        def tower(given: Fields, norm: Fields, width: int, heads: int) -> TransformerConfig:
            return TransformerConfig(
                width=width,
                layers=given.get("layers", 12),
                heads=heads,
                mlp_width=int(width * given.get("mlp_ratio", 4.0)),
                activation="quick_gelu" if model.get("quick_gelu") else "gelu",
                layer_norm_eps=norm.get("eps", TransformerConfig.layer_norm_eps),
            )

        image_width, size = vision.get("width", 768), _side(vision.get("image_size", 224))
        if _side(pixels.get("size") or size) != size:
            raise ValueError(f"the size of preprocess_cfg is not the {size} pixels of vision_cfg")
        config = CLIPConfig(
            embed_dim=model["embed_dim"],
            image_size=size,
            patch_size=_side(vision.get("patch_size", 16)),
            vision=tower(
                vision, norms[0], image_width, image_width // vision.get("head_width", 64)
            ),
            text=tower(text, norms[1], text.get("width", 512), text.get("heads", 8)),
            vocab_size=text.get("vocab_size", 49408),
            context_length=text.get("context_length", 77),
            preprocessing=Preprocessing(
                _channels(pixels.get("mean") or MEAN),
                _channels(pixels.get("std") or STD),
                "bilinear" if pixels.get("interpolation") == "bilinear" else "bicubic",
                "squash" if pixels.get("resize_mode") == "squash" else "crop",
            ),
        )
    return Description(config, text.get("eos_id", 2) if text.get("pool_type") == "eos" else None)


def _side(value: Any) -> Any:
    """Return the side of a square that is written as a pair; other values as they are."""
    pair = isinstance(value, list) and len(value) == 2 and value[0] == value[1]
    return value[0] if pair else value


def _channels(value: Any) -> Any:
    """Return one number a channel; one number stands for all."""
    return tuple(value) if isinstance(value, list | tuple) else (value,) * 3


def transformers_files(config: CLIPConfig, tokenizer: Tokenizer) -> dict[str, Fields]:
    """Return the configuration files of a model in transformers' layout, by name."""
    return {
        CONFIG_FILE: config_to_dict(config, tokenizer.start, tokenizer.end),
        PROCESSOR_FILES[0]: processor_to_dict(config.preprocessing, config.image_size),
    }


def config_to_dict(config: CLIPConfig, start: int | None = None, end: int | None = None) -> Fields:
    """Return the sizes as a config.json.

    start, end: ids of the tokens at the start and the end of a text; None for the two highest ids.
    """
    end = config.vocab_size - 1 if end is None else end

    def tower(kind: str, part: TransformerConfig, **own: int) -> Fields:
        sizes = {key: getattr(part, ours) for ours, key in _TOWER.items()}
        return {"model_type": kind, **sizes, "projection_dim": config.embed_dim, **own}

    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.embed_dim,
        "text_config": tower(
            "clip_text_model",
            config.text,
            vocab_size=config.vocab_size,
            max_position_embeddings=config.context_length,
            bos_token_id=end - 1 if start is None else start,
            eos_token_id=end,
            pad_token_id=end,
        ),
        "vision_config": tower(
            "clip_vision_model",
            config.vision,
            image_size=config.image_size,
            patch_size=config.patch_size,
        ),
    }


def processor_to_dict(preprocessing: Preprocessing, image_size: int) -> Fields:
    """Return the preprocessing as a preprocessor_config.json."""
    both = {"height": image_size, "width": image_size}
    crop = preprocessing.resize == "crop"
    return {
        "image_processor_type": "CLIPImageProcessor",
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


def open_clip_files(config: CLIPConfig) -> dict[str, Fields]:
    """Return the configuration files of a model in open_clip's layout, by name."""

    def tower(part: TransformerConfig) -> Fields:
        return {
            "width": part.width,
            "layers": part.layers,
            "mlp_ratio": part.mlp_width / part.width,
            "norm_kwargs": {"eps": part.layer_norm_eps},
        }

    pixels, size = config.preprocessing, config.image_size
    model = {
        "embed_dim": config.embed_dim,
        "quick_gelu": config.vision.activation == "quick_gelu",
        "vision_cfg": {
            "image_size": size,
            "patch_size": config.patch_size,
            "head_width": config.vision.width // config.vision.heads,
            **tower(config.vision),
        },
        "text_cfg": {
            "context_length": config.context_length,
            "vocab_size": config.vocab_size,
            "heads": config.text.heads,
            **tower(config.text),
        },
    }
    preprocessing = {
        "size": [size, size],
        "mode": "RGB",
        "mean": list(pixels.mean),
        "std": list(pixels.std),
        "interpolation": pixels.interpolation,
        "resize_mode": "shortest" if pixels.resize == "crop" else "squash",
    }
    return {OPEN_CLIP_CONFIG: {"model_cfg": model, "preprocess_cfg": preprocessing}}
