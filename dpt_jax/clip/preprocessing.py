"""What a model wants done to an image before its tower sees it.

`test_transform` makes the uint8 square on the host, `normalize_pixels` scales it
to floats on the device.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
RESIZES = ("crop", "squash")
# Sides of a resized image in squares from which on only the square itself is made: the memory
# is then that of the square, however thin the image is.
THIN = 16


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a square of floats; the defaults are those of OpenAI's CLIP.

    mean, std: of the channels, for pixels from 0 to 1. interpolation: one of
    INTERPOLATIONS. resize: "crop" takes the shorter side to the square's and
    cuts the centre out, "squash" takes both sides there.
    """

    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    interpolation: str = "bicubic"
    resize: str = "crop"

    @property
    def resample(self) -> Image.Resampling:
        """Return PIL's name of the interpolation."""
        return INTERPOLATIONS[self.interpolation]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON has them."""
        return {**dataclasses.asdict(self), "mean": list(self.mean), "std": list(self.std)}


CLIP_PREPROCESSING = Preprocessing()


def test_transform(
    image: Image.Image, size: int, preprocessing: Preprocessing = CLIP_PREPROCESSING
) -> np.ndarray:
    """Return the part of an RGB image that the model sees: (size, size, 3) uint8."""
    resample = preprocessing.resample
    if preprocessing.resize == "squash":
        return np.asarray(image.resize((size, size), resample))
    width, height = image.size
    if width <= height:
        wide, high = size, int(size * height / width)
    else:
        wide, high = int(size * width / height), size
    left, top = round((wide - size) / 2), round((high - size) / 2)
    if max(wide, high) > THIN * size:
        across, down = width / wide, height / high
        part = (left * across, top * down, (left + size) * across, (top + size) * down)
        return np.asarray(image.resize((size, size), resample, box=part))
    image = image.resize((wide, high), resample)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def normalize_pixels(
    images: jax.Array, preprocessing: Preprocessing = CLIP_PREPROCESSING
) -> jax.Array:
    """Return uint8 images (B, H, W, 3) as normalized float32; float images pass as they are."""
    if images.dtype != jnp.uint8:
        return images
    mean, std = jnp.asarray(preprocessing.mean), jnp.asarray(preprocessing.std)
    return (images.astype(jnp.float32) / 255 - mean) / std
