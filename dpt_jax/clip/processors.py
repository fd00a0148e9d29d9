"""The image processors of transformers and open_clip as our Preprocessing.

A processor that does anything that Preprocessing does not have is refused by name.
"""

from typing import Any

from etils import epath
from PIL import Image

from dpt_jax.clip.json_files import Section, read_json
from dpt_jax.clip.preprocessing import (
    CLIP_PREPROCESSING,
    INTERPOLATIONS,
    MEAN,
    STD,
    Preprocessing,
)
from dpt_jax.errors import UserError

# transformers 5 writes the second one, with the first one's fields in "image_processor".
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
CLASSES = ("CLIPImageProcessor", "CLIPFeatureExtractor")
# Where the image is computed and how it is handed over; its pixels are the same.
_NEUTRAL = {"do_convert_rgb"}


def read_processor(folder: epath.Path, image_size: int) -> Preprocessing:
    """Return the preprocessing of a transformers model folder; CLIP's own where none is said.

    Raise UserError for a processor that is not supported, or of another image size.
    """
    for name in PROCESSOR_FILES:
        if (folder / name).exists():
            fields = read_json(folder / name)
            if name == PROCESSOR_FILES[1]:
                if not fields.has("image_processor"):
                    continue
                fields = fields.section("image_processor")
            return _from_transformers(fields, image_size)
    return CLIP_PREPROCESSING


def _from_transformers(fields: Section, image_size: int) -> Preprocessing:
    for key in ("image_processor_type", "feature_extractor_type"):
        name = fields.get(key)
        plain = str(name).removesuffix("Fast").removesuffix("Pil")
        if name is not None and plain not in CLASSES:
            raise UserError(f"{fields.file}: the image processor {name} is not supported.")
    for key in ("do_resize", "do_rescale", "do_normalize"):
        if not fields.flag(key, True):
            raise UserError(f"{fields.file}: {fields.name}{key} is false, which is not supported.")
    resize = _resize(fields, image_size)
    interpolation = _interpolation(fields)
    if abs(fields.number("rescale_factor", 1 / 255) * 255 - 1) > 1e-4:
        raise fields.error("rescale_factor", "1/255")
    mean = fields.channels("image_mean", MEAN)
    std = fields.channels("image_std", STD, positive=True)
    for key, value in fields.left().items():
        if key.startswith("do_") and value and key not in _NEUTRAL:
            raise UserError(f"{fields.file}: {fields.name}{key} is not supported.")
    return Preprocessing(mean, std, interpolation, resize)


def _resize(fields: Section, image_size: int) -> str:
    """Return "crop" or "squash".  Raise UserError where both sides do not become the image size."""
    crop = fields.flag("do_center_crop", True)
    side, shorter = _side(fields, "size", image_size)
    sides = [side]
    if crop:
        sides.append(_side(fields, "crop_size", image_size)[0])
    for side in sides:
        if side != image_size:
            raise UserError(
                f"{fields.file}: images of {side} pixels are not supported for a model that takes "
                f"{image_size}."
            )
    if shorter and not crop:
        raise UserError(
            f"{fields.file}: {fields.name}do_center_crop is false, so that images need not be "
            "square, which is not supported."
        )
    return "crop" if shorter else "squash"


def _side(fields: Section, key: str, default: int) -> tuple[int, bool]:
    """Return the pixels of a size, and whether they are the shorter side's."""
    if not isinstance(fields.get(key), dict):
        return fields.side(key, default) if fields.has(key) else default, True
    size = fields.section(key)
    if size.has("shortest_edge"):
        side, shorter = size.whole("shortest_edge"), True
    else:
        side, shorter = size.whole("height"), False
        if size.whole("width") != side:
            raise fields.error(key, "a square")
    if left := size.left():
        raise UserError(f"{fields.file}: {size.name}{min(left)} is not supported.")
    return side, shorter


def _interpolation(fields: Section) -> str:
    names = {int(code): name for name, code in INTERPOLATIONS.items()}
    code = fields.whole("resample", int(Image.Resampling.BICUBIC), least=0)
    if code not in names:
        raise fields.error("resample", "one of PIL's filters, 0 to 5,")
    return names[code]


def from_open_clip(fields: Section, image_size: int) -> Preprocessing:
    """Return the preprocessing of the `preprocess_cfg` of an open_clip_config.json.

    Raise UserError for one that is not supported.
    """
    size = fields.side("size", image_size) if fields.has("size") else image_size
    if size != image_size:
        raise UserError(
            f"{fields.file}: preprocess_cfg.size is {size}, but the model takes {image_size}."
        )
    fields.choice("mode", ("RGB",), "RGB")
    fields.get("fill_color")  # the border of resize_mode "longest" alone
    interpolation = fields.choice("interpolation", ("bicubic", "bilinear", "random"), "bicubic")
    resize = fields.choice("resize_mode", ("shortest", "squash"), "shortest")
    preprocessing = Preprocessing(
        fields.channels("mean", MEAN),
        fields.channels("std", STD, positive=True),
        # "random" is between the two in training; outside of it open_clip takes bicubic.
        "bilinear" if interpolation == "bilinear" else "bicubic",
        "crop" if resize == "shortest" else "squash",
    )
    if left := fields.left():
        raise UserError(f"{fields.file}: preprocess_cfg.{min(left)} is not supported.")
    return preprocessing


def to_transformers(preprocessing: Preprocessing, image_size: int) -> dict[str, Any]:
    """Return the preprocessing as a preprocessor_config.json."""
    both = {"height": image_size, "width": image_size}
    crop = preprocessing.resize == "crop"
    return {
        "image_processor_type": CLASSES[0],
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
