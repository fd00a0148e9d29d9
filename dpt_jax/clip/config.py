"""Sizes and image preprocessing of a CLIP, and the files in which libraries store them.

transformers' own CLIPConfig is not used: it imports PyTorch if installed (seconds, 200 MB).
"""

import dataclasses
import json
import reprlib
from collections.abc import Callable
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from PIL import Image

from dpt_jax.io import reading

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
# Above this aspect ratio only the centre is resized, which limits the memory of a thin image.
THIN = 16
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a square of floats; the defaults are those of OpenAI's CLIP.

    Attributes:
      mean, std: mean and deviation of each channel, for pixels from 0 to 1.
      interpolation: a filter of Pillow, such as "bicubic".
      resize: "crop" resizes the shorter side and crops the centre, "squash" resizes both sides.

    Raises:
      ValueError: for a mean or deviation that is not three numbers.
    """

    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    interpolation: str = "bicubic"
    resize: str = "crop"

    def __post_init__(self) -> None:
        for name, least in (("mean", -1e38), ("std", 0.0)):
            value = getattr(self, name)
            numbers = [x for x in value if type(x) in (int, float) and least < x < 1e38]
            if len(value) != 3 or len(numbers) != 3:
                raise ValueError(f"{name} is {reprlib.repr(value)}, not a number per channel")

    @property
    def resample(self) -> Image.Resampling:
        """Pillow's constant of the interpolation."""
        return Image.Resampling[self.interpolation.upper()]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON takes them."""
        return {**dataclasses.asdict(self), "mean": list(self.mean), "std": list(self.std)}

    def transform(self, image: Image.Image, size: int) -> np.ndarray:
        """Return an RGB image resized and cropped, on the host: (size, size, 3) uint8."""
        if self.resize == "squash":
            return np.asarray(image.resize((size, size), self.resample))
        shorter = min(image.size)
        wide, high = (int(size * side / shorter) for side in image.size)
        left, top = round((wide - size) / 2), round((high - size) / 2)
        if max(wide, high) > THIN * size:
            across, down = image.width / wide, image.height / high
            part = (left * across, top * down, (left + size) * across, (top + size) * down)
            return np.asarray(image.resize((size, size), self.resample, box=part))
        image = image.resize((wide, high), self.resample)
        return np.asarray(image.crop((left, top, left + size, top + size)))

    def normalize(self, images: jax.Array) -> jax.Array:
        """Return uint8 images (B, H, W, 3) as normalized float32; float images as they are."""
        if images.dtype != jnp.uint8:
            return images
        mean, std = jnp.asarray(self.mean), jnp.asarray(self.std)
        return (images.astype(jnp.float32) / 255 - mean) / std


CLIP_PREPROCESSING = Preprocessing()


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes of one tower.

    Raises:
      ValueError: for a value of the wrong type or range.
    """

    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        _check_numbers(self)
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide a width of {self.width}")


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Sizes of a CLIP with a ViT image tower (image_size and patch_size in pixels).

    Raises:
      ValueError: for a value of the wrong type or range.
    """

    embed_dim: int
    image_size: int
    patch_size: int
    vision: TransformerConfig
    text: TransformerConfig
    vocab_size: int = 49408
    context_length: int = 77
    preprocessing: Preprocessing = CLIP_PREPROCESSING

    def __post_init__(self) -> None:
        _check_numbers(self)
        if self.patch_size > self.image_size:
            raise ValueError(f"patch_size is {self.patch_size}, image_size {self.image_size}")

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size


def _check_numbers(config: Any) -> None:
    """Raise ValueError for a field that should be a number above 0 and is not."""
    kinds = {int: (int,), float: (int, float)}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.type in kinds and (type(value) not in kinds[field.type] or not 0 < value < 2**31):
            raise ValueError(f"{field.name} is {value!r}, not a number above 0")


_SMALL, _LARGE = TransformerConfig(768, 12, 12, 3072), TransformerConfig(1024, 24, 16, 4096)
_TEXT = TransformerConfig(512, 12, 8, 2048)
OPENAI_MODELS = {
    "ViT-B/32": CLIPConfig(512, 224, 32, _SMALL, _TEXT),
    "ViT-B/16": CLIPConfig(512, 224, 16, _SMALL, _TEXT),
    "ViT-L/14": CLIPConfig(768, 224, 14, _LARGE, _SMALL),
    "ViT-L/14@336px": CLIPConfig(768, 336, 14, _LARGE, _SMALL),
}


Fields = dict[str, Any]
CONFIG_FILE, OPEN_CLIP_CONFIG = "config.json", "open_clip_config.json"
# transformers 5 writes the second one, with the fields of the first one in "image_processor".
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_TOWER = {
    "width": "hidden_size",
    "mlp_width": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "activation": "hidden_act",
    "layer_norm_eps": "layer_norm_eps",
}
# Where a config.json has the fields of CLIPConfig.
_TRANSFORMERS = {
    "embed_dim": "projection_dim",
    "image_size": "vision_config.image_size",
    "patch_size": "vision_config.patch_size",
    "vocab_size": "text_config.vocab_size",
    "context_length": "text_config.max_position_embeddings",
    **{f"vision.{ours}": f"vision_config.{theirs}" for ours, theirs in _TOWER.items()},
    **{f"text.{ours}": f"text_config.{theirs}" for ours, theirs in _TOWER.items()},
}
# Where an open_clip_config.json has those fields that it stores in the same form.
_VISION_CFG, _TEXT_CFG = "model_cfg.vision_cfg", "model_cfg.text_cfg"
_OPEN_CLIP = {
    "embed_dim": "model_cfg.embed_dim",
    "image_size": f"{_VISION_CFG}.image_size",
    "patch_size": f"{_VISION_CFG}.patch_size",
    "vision.width": f"{_VISION_CFG}.width",
    "vision.layers": f"{_VISION_CFG}.layers",
    "vision.layer_norm_eps": f"{_VISION_CFG}.norm_kwargs.eps",
    "context_length": f"{_TEXT_CFG}.context_length",
    "vocab_size": f"{_TEXT_CFG}.vocab_size",
    "text.heads": f"{_TEXT_CFG}.heads",
    "text.width": f"{_TEXT_CFG}.width",
    "text.layers": f"{_TEXT_CFG}.layers",
    "text.layer_norm_eps": f"{_TEXT_CFG}.norm_kwargs.eps",
}
# Early configurations have this end token, but their models take the highest id.
_OLD_END = 2

# Keys of open_clip that change nothing in a trained CLIP with two standard transformers.
_WITHOUT_EFFECT = {
    *("custom_text", "init_logit_scale", "cast_dtype", "output_dict", "fill_color"),
    *("patch_dropout", "output_tokens", "attn_pooler_queries", "attn_pooler_heads"),
    *("timm_model_pretrained", "timm_pool", "timm_proj", "timm_drop", "timm_drop_path"),
    *("pad_id", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type"),
}
# Supported values of its keys. Any key may be empty, which leaves a part out.
_VALUES = {
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


def read_json(file: epath.Path) -> dict[str, Any]:
    """Return the object of a JSON file.  Raise UserError if the file holds anything else."""
    with reading(file, "JSON"):
        value = json.loads(file.read_bytes().decode("utf-8-sig"))
        if not isinstance(value, dict):
            raise ValueError(f"it holds a {type(value).__name__}, not an object")
    return value


def read_transformers(file: epath.Path) -> tuple[CLIPConfig, int | None]:
    """Return the sizes in a config.json, and where a text's feature is taken.

    The latter is the id of a token, or None for the highest id. The image processor is read from
    the same folder. Raise UserError for another kind of model, or a value that is not supported.
    """
    with reading(file, "a configuration of a CLIP"):
        raw = read_json(file)
        if raw.get("model_type") != "clip":
            raise ValueError(f"model_type is {raw.get('model_type')!r}, not 'clip'")
        for tower in ("text_config", "vision_config"):
            # Older files have a second copy, which transformers prefers.
            second = raw.pop(f"{tower}_dict", None)
            raw[tower] = dict((raw.get(tower) if second is None else second) or {})
        end = raw["text_config"].get("eos_token_id")
        # The defaults of transformers are those of a ViT-B/32.
        found = _flat(config_to_dict(OPENAI_MODELS["ViT-B/32"])) | _flat(raw)
        config = _config({ours: _side(found[theirs]) for ours, theirs in _TRANSFORMERS.items()})
        for sizes in (config.text, config.vision):
            if sizes.activation not in ACTIVATIONS:
                raise ValueError(f"hidden_act is {sizes.activation!r}, which is not supported")
    processor = read_processor(file.parent, config.image_size)
    config = dataclasses.replace(config, preprocessing=processor)
    return config, None if end == _OLD_END else end


def _config(own: Fields) -> CLIPConfig:
    """Return the sizes of a flat dict, with the fields of a tower as "text.width"."""
    fields = _nested(own)
    towers = {tower: TransformerConfig(**fields[tower]) for tower in ("text", "vision")}
    return CLIPConfig(**{**fields, **towers})


def _flat(nested: Fields) -> Fields:
    return flax.traverse_util.flatten_dict(nested, sep=".")


def _nested(flat: Fields) -> Fields:
    return flax.traverse_util.unflatten_dict(flat, sep=".")


def read_processor(folder: epath.Path, size: int) -> Preprocessing:
    """Return the preprocessing of a model folder, OpenAI's if the folder has no processor file.

    Raise UserError for a processor that is not supported, or of another image size.
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
    own = "CLIPImageProcessor"
    supported: dict[str, tuple[Any, ...]] = {
        **dict.fromkeys(("do_resize", "do_rescale", "do_normalize"), (True,)),
        "image_processor_type": (own, f"{own}Fast", f"{own}Pil", "CLIPFeatureExtractor"),
        "feature_extractor_type": (own, "CLIPFeatureExtractor"),
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


def read_open_clip(file: epath.Path) -> tuple[CLIPConfig, int | None]:
    """Return what an open_clip_config.json says, as `read_transformers` does."""
    with reading(file, "open_clip's configuration of a CLIP"):
        raw = read_json(file)
        # Its defaults are those of a ViT-B/16 with another activation.
        defaults = _flat(open_clip_to_dict(OPENAI_MODELS["ViT-B/16"])) | {
            "model_cfg.embed_dim": None,
            "model_cfg.quick_gelu": False,
            f"{_TEXT_CFG}.pool_type": "argmax",
            f"{_TEXT_CFG}.eos_id": 2,
            "preprocess_cfg.size": None,
        }
        given = _flat({key: raw.get(key) or {} for key in ("model_cfg", "preprocess_cfg")})
        for key, value in given.items():
            name = key.rpartition(".")[2]
            known = key in defaults or name in _WITHOUT_EFFECT
            if value and not (value in _VALUES[name] if name in _VALUES else known):
                raise ValueError(f"{key} is {value!r}, which is not supported")
        found = {key: given.get(key, default) for key, default in defaults.items()}
        own: Fields = {ours: found[theirs] for ours, theirs in _OPEN_CLIP.items()}
        own |= {side: _side(own[side]) for side in ("image_size", "patch_size")}
        own["vision.heads"] = own["vision.width"] // found[f"{_VISION_CFG}.head_width"]
        for tower, theirs in (("vision", _VISION_CFG), ("text", _TEXT_CFG)):
            own[f"{tower}.mlp_width"] = int(own[f"{tower}.width"] * found[f"{theirs}.mlp_ratio"])
            own[f"{tower}.activation"] = "quick_gelu" if found["model_cfg.quick_gelu"] else "gelu"
        pixels, size = _nested(found)["preprocess_cfg"], own["image_size"]
        if _side(pixels["size"] or size) != size:
            raise ValueError(f"the size of preprocess_cfg is not the {size} pixels of vision_cfg")
        own["preprocessing"] = Preprocessing(
            _channels(pixels["mean"] or MEAN),
            _channels(pixels["std"] or STD),
            "bilinear" if pixels["interpolation"] == "bilinear" else "bicubic",
            "squash" if pixels["resize_mode"] == "squash" else "crop",
        )
        config, at_end = _config(own), found[f"{_TEXT_CFG}.pool_type"] == "eos"
    return config, found[f"{_TEXT_CFG}.eos_id"] if at_end else None


def _side(value: Any) -> Any:
    """Return the side of a square that is written as a pair; other values as they are."""
    pair = isinstance(value, list) and len(value) == 2 and value[0] == value[1]
    return value[0] if pair else value


def _channels(value: Any) -> Any:
    """Return one number per channel; a single number applies to all."""
    return tuple(value) if isinstance(value, list | tuple) else (value,) * 3


def config_to_dict(config: CLIPConfig, start: int | None = None, end: int | None = None) -> Fields:
    """Return the sizes as a config.json.

    start, end: ids of the tokens at the start and the end of a text; None for the two highest ids.
    """
    own = _flat(dataclasses.asdict(config))
    end = config.vocab_size - 1 if end is None else end
    fields = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "text_config.model_type": "clip_text_model",
        "vision_config.model_type": "clip_vision_model",
        **{theirs: own[ours] for ours, theirs in _TRANSFORMERS.items()},
        "text_config.projection_dim": config.embed_dim,
        "vision_config.projection_dim": config.embed_dim,
        "text_config.bos_token_id": end - 1 if start is None else start,
        "text_config.eos_token_id": end,
        "text_config.pad_token_id": end,
    }
    return _nested(fields)


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


def open_clip_to_dict(config: CLIPConfig) -> Fields:
    """Return sizes and preprocessing as an open_clip_config.json."""
    own, pixels, size = _flat(dataclasses.asdict(config)), config.preprocessing, config.image_size
    fields = {
        **{theirs: own[ours] for ours, theirs in _OPEN_CLIP.items()},
        "model_cfg.quick_gelu": config.vision.activation == "quick_gelu",
        f"{_VISION_CFG}.head_width": config.vision.width // config.vision.heads,
        f"{_VISION_CFG}.mlp_ratio": config.vision.mlp_width / config.vision.width,
        f"{_TEXT_CFG}.mlp_ratio": config.text.mlp_width / config.text.width,
        "preprocess_cfg.size": [size, size],
        "preprocess_cfg.mode": "RGB",
        "preprocess_cfg.mean": list(pixels.mean),
        "preprocess_cfg.std": list(pixels.std),
        "preprocess_cfg.interpolation": pixels.interpolation,
        "preprocess_cfg.resize_mode": "shortest" if pixels.resize == "crop" else "squash",
    }
    return _nested(fields)
