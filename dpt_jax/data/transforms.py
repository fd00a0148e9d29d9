"""From an image to the uint8 square that goes to the device.

The published pipeline on PIL images, bicubic throughout. Scaling to floats and
CLIP's mean and deviation are left to the device.
"""

import math

import numpy as np
from PIL import Image

AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
ATTEMPTS = 10
THIN = 8  # sides to one another, from which on only the middle of an image is resized


def test_transform(image: Image.Image, size: int) -> np.ndarray:
    """Resize the shorter side to `size`, return the centre square: (size, size, 3) uint8."""
    width, height = image.size
    if max(width, height) > THIN * min(width, height):
        return _middle_of_thin(image, size)
    if width <= height:
        width, height = size, int(size * height / width)
    else:
        width, height = int(size * width / height), size
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def _middle_of_thin(image: Image.Image, size: int) -> np.ndarray:
    """Return what test_transform does, without the ends of the image.

    One pixel beside 60,000 would be resized to gigabytes, of which a square is kept.
    """
    width, height = image.size
    longer, shorter = max(width, height), min(width, height)
    resized = int(size * longer / shorter)
    first = round((resized - size) / 2)
    # The first and the last row that is kept, in pixels of the image.
    begin, end = (edge * longer / resized for edge in (first, first + size))
    box = (0, begin, width, end) if width <= height else (begin, 0, end, height)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))


def train_transform(image: Image.Image, size: int, generator: np.random.Generator) -> np.ndarray:
    """Return a random part at `size` pixels, half the time mirrored: (size, size, 3) uint8."""
    image = image.crop(random_box(*image.size, generator)).resize(
        (size, size), Image.Resampling.BICUBIC
    )
    if generator.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image)


def random_box(
    width: int, height: int, generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) of a random part of an image.

    It has 8 to 100 % of the area and a side ratio of 3/4 to 4/3. Ratios are drawn
    evenly in their logarithm. Where ten draws do not fit the image, it is the
    centre, cut to the nearest allowed ratio.
    """
    for _ in range(ATTEMPTS):
        area = width * height * generator.uniform(*AREA)
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
