"""Measures how many images per second the loader gives, by its number of threads.

    python benchmarks/loading.py [--images=512] [--threads=1,2,4]

Writes JPEG files of 500 x 375 pixels, and loads training batches of 224 pixels. In the first epoch
files are decoded; later epochs find the decoded images in memory. Prints images/s as a Markdown
table. `dpt-jax check --data=DIR` compares your own images with what a training step needs.
"""

import argparse
import os
import pathlib
import platform
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
from etils import epath

from dpt_jax.check.measure import write_jpegs
from dpt_jax.data import loader, records
from dpt_jax.data.records import Example, Files

BATCH, EPOCHS = 32, 4


def main() -> None:
    """Write the images, load them with each number of threads, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--threads", default="1,2,4")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, jax {jax.__version__}\n")
    print("| threads | first epoch | later epochs |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        write_jpegs(pathlib.Path(folder), options.images)
        for threads in map(int, options.threads.split(",")):
            first, *later = rates(pathlib.Path(folder), threads)
            print(f"| {threads} | {first:.0f} | {min(later):.0f} to {max(later):.0f} |", flush=True)


def rates(folder: pathlib.Path, threads: int) -> list[float]:
    """Return the images/s of each epoch."""
    loader.LEAST_THREADS = loader.MOST_THREADS = threads
    records.cache = records.ImageCache()
    loading = loader.Loading(
        read=Files(epath.Path(folder)),
        examples=[Example(file.name, 0) for file in sorted(folder.iterdir())],
        size=224,
        batch_size=BATCH,
        epochs=EPOCHS,
        seed=0,
    )
    batches, found = loader.train_batches(loading), []
    steps = loader.steps_per_epoch(len(loading.examples), BATCH)
    for _ in range(EPOCHS):
        began = time.perf_counter()
        for _ in range(steps):
            next(batches)
        found.append(steps * BATCH / (time.perf_counter() - began))
    return found


if __name__ == "__main__":
    main()
