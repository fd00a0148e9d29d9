"""JPEG files of random content, for benchmarks that need no download."""

import pathlib

import numpy as np
from PIL import Image

from dpt_jax.data.catalogue import imagenet_classnames


def write_images(root: pathlib.Path, files: int, classes: int, pixels: int = 500) -> float:
    """Write images that compress about as photographs do; return their mean size in bytes.

    They are smooth random colours with some noise, `pixels` wide and three quarters of it high, as
    `files` files below root/train and the same below root/test, in folders of ImageNet's first
    classes.
    """
    generator = np.random.default_rng(0)
    width, height = pixels, pixels * 3 // 4
    folders = imagenet_classnames()[:classes]
    bytes_written = 0
    for i in range(files):
        colours = Image.fromarray(generator.integers(0, 256, (12, 16, 3), np.uint8))
        smooth = np.asarray(colours.resize((width, height), Image.Resampling.BICUBIC), np.int16)
        noisy = smooth + generator.integers(-12, 13, smooth.shape)
        for split in ("train", "test"):
            name = f"{i % len(folders):03d}_{folders[i % len(folders)]}"
            file = root / split / name / f"{i:06d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, quality=90)
            bytes_written += file.stat().st_size
    return bytes_written / (2 * files)
