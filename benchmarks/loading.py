"""Times the loading of images, and the model on a batch in memory.

    python benchmarks/loading.py [--images=512] [--pixels=500] [--workers=0,1,2]
        [--classes=100] [--batch=32]

Writes JPEG files of random content. Loads them with the train and the test transform, by threads
(workers 0) and by worker processes. Then times DPT on a ViT-B/32 with random weights. Prints
images/s as a Markdown table.
"""

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
from absl import app, flags, logging
from PIL import Image

from benchmarks.random_clip import random_clip
from dpt_jax.check import programs
from dpt_jax.check.programs import times
from dpt_jax.config import method_config
from dpt_jax.data import loader
from dpt_jax.data.catalogue import imagenet_classnames
from dpt_jax.training import setup

IMAGES = flags.DEFINE_integer("images", 512, "JPEG files to load.", lower_bound=1)
PIXELS = flags.DEFINE_integer("pixels", 500, "Width; the height is 3/4 of it.", lower_bound=16)
WORKERS = flags.DEFINE_list("workers", ["0", "1", "2"], "Loader processes; 0 for threads.")
CLASSES = flags.DEFINE_integer(
    "classes", 100, "The first N ImageNet classes.", lower_bound=1, upper_bound=1000
)
BATCH = flags.DEFINE_integer("batch", 32, "Images per batch.", lower_bound=1)
STEPS = 5
PASSES = 3
LOADED_AHEAD = 12  # batches; the loader keeps eight ready


def main(_: list[str]) -> None:
    """Load, run the model, and print the table."""
    logging.set_verbosity(logging.WARNING)
    files = max(IMAGES.value, CLASSES.value)
    if PASSES * files <= (LOADED_AHEAD + 1) * BATCH.value:
        least = (LOADED_AHEAD + 1) * BATCH.value // PASSES
        sys.exit(f"--images={files} is too few: give more than {least}.")
    with tempfile.TemporaryDirectory() as folder:
        size = write_images(pathlib.Path(folder), files)
        config = method_config("dpt", "folder")
        config.dataset.root, config.dataset.shots = folder, -1
        config.train.batch_size = BATCH.value
        experiment = setup.prepare(config, random_clip("vit-b-32", setup.compute_dtype(config)))
        print(
            f"{files} JPEG files of {PIXELS.value} x {PIXELS.value * 3 // 4} pixels, "
            f"{size / 1000:.0f} kB each; {os.cpu_count()} cores, "
            f"Python {platform.python_version()}, jax {jax.__version__}, {jax.default_backend()}.\n"
        )
        print("| | train (images/s) | test (images/s) |\n| --- | --- | --- |")
        for workers in map(int, WORKERS.value):
            train, test = (rate(batches(experiment, each, workers)) for each in (True, False))
            name = f"loader, {workers} processes" if workers else "loader, threads"
            print(f"| {name} | {train:.0f} | {test:.0f} |", flush=True)
        batch = next(batches(experiment, train=False, workers=0))
        images = len(batch["label"])
        batch = loader.shard(batch, BATCH.value, jax.local_device_count())
        steps = programs.training(experiment, batch), programs.evaluation(experiment, batch)[0]
        train, test = (images / times(step.run, STEPS)[1] for step in steps)
        print(f"| DPT, ViT-B/32 | {train:.1f} | {test:.1f} |")


def write_images(root: pathlib.Path, files: int) -> float:
    """Write images that compress about as photographs do; return their mean size in bytes.

    They are smooth random colours with noise, `files` each below root/train and root/test.
    """
    generator = np.random.default_rng(0)
    width, height = PIXELS.value, PIXELS.value * 3 // 4
    names = imagenet_classnames()[: CLASSES.value]
    bytes_written = 0
    for i in range(files):
        colours = Image.fromarray(generator.integers(0, 256, (12, 16, 3), np.uint8))
        smooth = np.asarray(colours.resize((width, height), Image.Resampling.BICUBIC), np.int16)
        noisy = smooth + generator.integers(-12, 13, smooth.shape)
        for split in ("train", "test"):
            label = i % len(names)
            file = root / split / f"{label:03d}_{names[label]}" / f"{i:06d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, quality=90)
            bytes_written += file.stat().st_size
    return bytes_written / (2 * files)


def batches(experiment: setup.Experiment, train: bool, workers: int) -> Iterator[loader.Batch]:
    """Yield the batches of PASSES passes over the images."""
    dataset, clip = experiment.dataset, experiment.model.clip_config
    if not train:
        return loader.test_batches(
            loader.Loading(
                read=dataset.read,
                examples=dataset.test * PASSES,
                size=clip.image_size,
                preprocessing=clip.preprocessing,
                batch_size=BATCH.value,
                workers=workers,
            )
        )
    return loader.train_batches(
        loader.TrainLoading(
            read=dataset.read,
            examples=dataset.train,
            size=clip.image_size,
            preprocessing=clip.preprocessing,
            batch_size=BATCH.value,
            workers=workers,
            epochs=PASSES,
            seed=0,
        )
    )


def rate(loaded: Iterator[loader.Batch]) -> float:
    """Return images/s, after the start of the processes and the batches loaded ahead."""
    for _ in range(LOADED_AHEAD):
        next(loaded)
    began = time.perf_counter()
    images = sum(len(batch["label"]) for batch in loaded)
    return images / (time.perf_counter() - began)


if __name__ == "__main__":
    app.run(main)
