"""How an image becomes the input of the image tower.

`test_transform` crops the uint8 square on the host; `normalize_pixels` scales it to floats on the
device.
"""

import dataclasses
import reprlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

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


CLIP_PREPROCESSING = Preprocessing()


def test_transform(
    image: Image.Image, size: int, preprocessing: Preprocessing = CLIP_PREPROCESSING
) -> np.ndarray:
    """Return an RGB image resized and cropped for the image tower: (size, size, 3) uint8."""
    resample = preprocessing.resample
    if preprocessing.resize == "squash":
        return np.asarray(image.resize((size, size), resample))
    shorter = min(image.size)
    wide, high = (int(size * side / shorter) for side in image.size)
    left, top = round((wide - size) / 2), round((high - size) / 2)
    if max(wide, high) > THIN * size:
        across, down = image.width / wide, image.height / high
        part = (left * across, top * down, (left + size) * across, (top + size) * down)
        return np.asarray(image.resize((size, size), resample, box=part))
    image = image.resize((wide, high), resample)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def normalize_pixels(
    images: jax.Array, preprocessing: Preprocessing = CLIP_PREPROCESSING
) -> jax.Array:
    """Return uint8 images (B, H, W, 3) as normalized float32; float images are returned as is."""
    if images.dtype != jnp.uint8:
        return images
    mean, std = jnp.asarray(preprocessing.mean), jnp.asarray(preprocessing.std)
    return (images.astype(jnp.float32) / 255 - mean) / std
