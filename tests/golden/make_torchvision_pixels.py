"""Write torchvision_pixels.npz: results of torchvision's transforms of PIL images for fixed boxes.

    pip install torchvision
    python tests/golden/make_torchvision_pixels.py

CoOp's training transform is RandomResizedCrop and a flip, its test transform Resize and CenterCrop.
"""

import pathlib

import numpy as np
import torchvision
from PIL import Image
from torchvision.transforms import functional

SIZE, BICUBIC = 32, torchvision.transforms.InterpolationMode.BICUBIC
# Width and height of an image, and boxes (left, top, right, bottom) in it.
IMAGES = {
    (75, 56): [(0, 0, 75, 56), (3, 5, 40, 43), (60, 40, 75, 56), (10, 0, 33, 20)],
    (40, 61): [(0, 0, 40, 61), (7, 11, 27, 41), (0, 30, 40, 61)],
    (20, 17): [(0, 0, 20, 17), (5, 5, 12, 11)],
}


def main() -> None:
    """Write the images, and for each box the crop, the flipped crop, and the test image."""
    generator, arrays = np.random.default_rng(0), {"version": np.array(torchvision.__version__)}
    for (width, height), boxes in IMAGES.items():
        small = Image.fromarray(generator.integers(0, 256, (6, 8, 3), np.uint8))
        smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.int16)
        pixels = (smooth + generator.integers(-40, 41, smooth.shape)).clip(0, 255).astype(np.uint8)
        image, name = Image.fromarray(pixels), f"{width}x{height}"
        crops = []
        for left, top, right, bottom in boxes:
            where = top, left, bottom - top, right - left
            crop = functional.resized_crop(image, *where, [SIZE, SIZE], BICUBIC)
            crops.append(np.stack([np.asarray(crop), np.asarray(functional.hflip(crop))]))
        test = functional.center_crop(functional.resize(image, SIZE, BICUBIC), [SIZE, SIZE])
        arrays |= {f"{name}/image": pixels, f"{name}/boxes": np.array(boxes)}
        arrays |= {f"{name}/train": np.stack(crops), f"{name}/test": np.asarray(test)}
    np.savez_compressed(pathlib.Path(__file__).with_name("torchvision_pixels.npz"), **arrays)


if __name__ == "__main__":
    main()
