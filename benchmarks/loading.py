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

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax

from dpt_jax.check.measure import loading_rates, write_jpegs
from dpt_jax.data import loader
from dpt_jax.data.folder import find_images

EPOCHS = 4


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
        files = find_images([folder])
        for threads in map(int, options.threads.split(",")):
            loader.LEAST_THREADS = loader.MOST_THREADS = threads
            first, *later = loading_rates(files, EPOCHS)
            print(f"| {threads} | {first:.0f} | {min(later):.0f} to {max(later):.0f} |", flush=True)


if __name__ == "__main__":
    main()
