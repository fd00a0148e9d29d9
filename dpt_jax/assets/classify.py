"""Classifies images with the exported classifier beside this file.  Needs jax, numpy and pillow, nothing else.

python classify.py IMAGE…
"""

import json
import pathlib
import sys

import jax
import numpy as np
from PIL import Image

FOLDER = pathlib.Path(__file__).parent
ABOUT = json.loads((FOLDER / "classifier.json").read_text(encoding="utf-8"))


def load_image(file: str, size: int) -> np.ndarray:
    """The image as the classifier takes it, (size, size, 3) uint8: shorter side to `size`, then the centre square."""
    with Image.open(file) as opened:
        sixteen_bits = opened.mode.startswith("I")
        image = (
            opened.convert("I").point(lambda value: value / 257).convert("L")
            if sixteen_bits
            else opened.copy()
        )
    image = image.convert("RGB")
    width, height = image.size
    if width <= height:
        width, height = size, int(size * height / width)
    else:
        width, height = int(size * width / height), size
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def main(files: list[str]) -> None:
    """Prints the three likeliest classes of each image."""
    program = bytearray((FOLDER / "classifier.jax").read_bytes())
    classify = jax.jit(jax.export.deserialize(program).call)
    images = np.stack([load_image(file, ABOUT["image_size"]) for file in files])
    for file, probabilities in zip(files, np.asarray(classify(images)), strict=True):
        best = np.argsort(-probabilities, kind="stable")[:3]
        print(
            file,
            *(f"{ABOUT['classnames'][c]} {100 * probabilities[c]:.1f} %" for c in best),
            sep="  ",
        )


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1:])
