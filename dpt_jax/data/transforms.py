"""Random resized crops and shifts of training images, as the published pipeline makes them.

They take PIL images and use the model's own interpolation. Scaling to floats and normalization are
done on the device.
"""

import math

import numpy as np
from PIL import Image

from dpt_jax.clip.preprocessing import CLIP_PREPROCESSING, Preprocessing

LEAST_AREA = 0.08
RATIO = (3 / 4, 4 / 3)
ATTEMPTS = 10


def train_transform(
    image: Image.Image,
    size: int,
    generator: np.random.Generator,
    preprocessing: Preprocessing = CLIP_PREPROCESSING,
    least_area: float = LEAST_AREA,
) -> np.ndarray:
    """Return a random resized crop, flipped half the time: (size, size, 3) uint8."""
    image = image.crop(random_box(*image.size, generator, least_area)).resize(
        (size, size), preprocessing.resample
    )
    if generator.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image)


def random_box(
    width: int, height: int, generator: np.random.Generator, least_area: float = LEAST_AREA
) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) of a random crop, as torchvision's RandomResizedCrop.

    Its area is at least `least_area` of the image, its aspect ratio log-uniform in 3/4 to 4/3. If
    ten draws do not fit the image, it is the centre crop of the nearest ratio.
    """
    for _ in range(ATTEMPTS):
        area = width * height * generator.uniform(least_area, 1.0)
        ratio = math.exp(generator.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        part = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < part[0] <= width and 0 < part[1] <= height:
            left = int(generator.integers(width - part[0] + 1))
            top = int(generator.integers(height - part[1] + 1))
            return left, top, left + part[0], top + part[1]
    ratio = min(max(width / height, RATIO[0]), RATIO[1])
    part = min(width, round(height * ratio)), min(height, round(width / ratio))
    left, top = (width - part[0]) // 2, (height - part[1]) // 2
    return left, top, left + part[0], top + part[1]


def shifted(pixels: np.ndarray, most: int, generator: np.random.Generator) -> np.ndarray:
    """Return (size, size, 3) pixels, moved by up to `most` pixels in each direction.

    Shifts are drawn uniformly. The edge is repeated.
    """
    right, down = generator.integers(-most, most + 1, 2)
    height, width = pixels.shape[:2]
    padded = np.pad(pixels, ((most, most), (most, most), (0, 0)), mode="edge")
    top, left = most - down, most - right
    return padded[top : top + height, left : left + width]
