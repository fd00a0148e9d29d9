"""Classifies images with the exported classifier beside this file.

Needs jax, numpy and pillow, nothing else.

python classify.py IMAGE…
"""

import json
import pathlib
import sys
from collections.abc import Callable

import jax
import numpy as np
from PIL import Image, ImageOps

FOLDER = pathlib.Path(__file__).parent
# Raster formats only: for PostScript, Pillow would start another program.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF", "JPEG2000", "TGA", "ICO")
ABOUT = json.loads((FOLDER / "classifier.json").read_text(encoding="utf-8"))


def load_image(file: str) -> np.ndarray:
    """Return the image as the classifier takes it: (size, size, 3) uint8."""
    with Image.open(file, formats=FORMATS) as opened:
        deep = opened.mode.startswith("I;16")
        if deep or (opened.mode == "I" and opened.format in ("PNG", "PPM")):
            tags = getattr(opened, "tag_v2", {})  # a TIFF may have 12 bits, or 0 for white
            step = (2 ** tags.get(258, (16,))[0] - 1) / 255
            image = opened.convert("I").point(lambda value: value / step).convert("L")
            image = ImageOps.invert(image) if tags.get(262) == 0 else image
        elif opened.mode in ("I", "F"):
            sys.exit(f"{file}: the white value of its pixels is unknown; save it with 8 bits.")
        else:
            image = opened.convert("RGBA" if "transparency" in opened.info else "RGB")
    image = image.convert("RGB")
    ImageOps.exif_transpose(image, in_place=True)  # photos of phones may lie on their side

    size, how = ABOUT["image_size"], ABOUT["preprocessing"]
    kernel = Image.Resampling[how["interpolation"].upper()]
    if how["resize"] == "squash":
        return np.asarray(image.resize((size, size), kernel))
    # The shorter side becomes `size`, and the centre is cropped.
    shorter = min(image.size)
    wide, high = (int(size * side / shorter) for side in image.size)
    left, top = round((wide - size) / 2), round((high - size) / 2)
    image = image.resize((wide, high), kernel)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def load_classifier() -> Callable[[np.ndarray], jax.Array]:
    """Return the classifier: images (b, size, size, 3) uint8 to probabilities (b, classes)."""
    program = bytearray((FOLDER / "classifier.jax").read_bytes())
    try:
        return jax.jit(jax.export.deserialize(program).call)
    except Exception as reason:  # there are many types
        sys.exit(
            f"classifier.jax cannot be read ({type(reason).__name__}: {reason}). It is for "
            f"{ABOUT['read_by']}, and this is JAX {jax.__version__}: export it again with this one."
        )


def main(files: list[str]) -> None:
    """Prints the three likeliest classes of each image."""
    classify = load_classifier()
    images = np.stack([load_image(file) for file in files])
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
