"""The sizes of a CLIP with a ViT image tower, and how an image becomes its input."""

import dataclasses
import json
import reprlib
from typing import Any

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


def read_json(file: epath.Path) -> dict[str, Any]:
    """Return the object of a JSON file.  Raise UserError if the file holds anything else."""
    with reading(file, "JSON"):
        value = json.loads(file.read_bytes().decode("utf-8-sig"))
        if not isinstance(value, dict):
            raise ValueError(f"it holds a {type(value).__name__}, not an object")
    return value
