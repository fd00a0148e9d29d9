"""Measures how many images per second the loader gives, by its number of threads.

    python benchmarks/loading.py [--data=DIR] [--images=512] [--threads=1,2,4]

Loads training batches of 224 pixels, from DIR or from JPEG files of 500 x 375 pixels that it
writes. In the first epoch files are decoded; later epochs find the decoded images in memory. Prints
images/s as a Markdown table. `dpt-jax check` prints what a training step needs.
"""

import argparse
import os
import pathlib
import platform
import sys
import tempfile
import time
from collections.abc import Iterator

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import numpy as np
from PIL import Image

from dpt_jax import distributed
from dpt_jax.data import loader, records
from dpt_jax.data.folder import find_images
from dpt_jax.data.records import Example, Files
from dpt_jax.io import as_path

BATCH, EPOCHS = 32, 4


def main() -> None:
    """Write the images, load them with each number of threads, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="a folder of images")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--threads", default="1,2,4")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, jax {jax.__version__}\n")
    print("| threads | first epoch | later epochs |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        if not options.data:
            write_jpegs(pathlib.Path(folder), options.images)
        files = find_images([options.data or folder])[: options.images]
        for threads in map(int, options.threads.split(",")):
            loader.LEAST_THREADS = loader.MOST_THREADS = threads
            first, *later = loading_rates(files, EPOCHS)
            print(f"| {threads} | {first:.0f} | {min(later):.0f} to {max(later):.0f} |", flush=True)


def write_jpegs(folder: pathlib.Path, count: int, width: int = 500, height: int = 375) -> None:
    """Write images that compress about as photographs: smooth random colours with noise."""
    generator = np.random.default_rng(0)
    for number in range(count):
        colours = Image.fromarray(generator.integers(0, 256, (12, 16, 3), np.uint8))
        smooth = np.asarray(colours.resize((width, height), Image.Resampling.BICUBIC), np.int16)
        noisy = smooth + generator.integers(-12, 13, smooth.shape)
        image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        image.save(folder / f"{number:06d}.jpg", quality=90)


def loading_rates(files: list[str], epochs: int) -> Iterator[float]:
    """Yield the images/s of each epoch of a training, with the copies to the devices.

    Decoded images are cached in the first epoch.
    """
    devices = jax.local_device_count()
    loading = loader.Loading(
        read=Files(as_path("/")),
        examples=[Example(str(as_path(file).absolute()), 0) for file in files],
        size=224,
        batch_size=BATCH,
        epochs=epochs,
    )

    def transfer(batch: loader.Batch) -> loader.Batch:
        placed: loader.Batch = distributed.place(loader.shard(batch, BATCH, devices))
        return placed

    before, records.cache = records.cache, records.ImageCache()
    try:
        batches = loader.train_batches(loading, transfer=transfer)
        steps = loader.steps_per_epoch(len(files), BATCH)
        for _ in range(epochs):
            began = time.perf_counter()
            for _ in range(steps):
                jax.block_until_ready(next(batches))
            yield steps * min(BATCH, len(files)) / (time.perf_counter() - began)
    finally:
        records.cache = before


if __name__ == "__main__":
    main()
