"""How fast images are loaded, beside how fast the model takes them.

    python benchmarks/loading.py [--images=512] [--pixels=500] [--workers=0,1,2]
        [--classes=100] [--batch=32]

Writes JPEG files of random content, 500 pixels wide. Loads them with the train and the test
transform, by the threads of this process (workers 0) and by worker processes. Then times DPT, on a
ViT-B/32 of random weights, on a batch that is in memory already. Prints images/s as Markdown.
"""

import functools
import os
import pathlib
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

# Started as a script, whose import path begins in this folder and not at the repository's root.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
from absl import app, flags, logging

from benchmarks.jpegs import write_images
from benchmarks.random_clip import random_clip
from dpt_jax import distributed
from dpt_jax.config import method_config
from dpt_jax.data import loader
from dpt_jax.evaluation.evaluate import make_programs
from dpt_jax.training import initial_prompts as adoption
from dpt_jax.training import setup as experiments
from dpt_jax.training.optimizer import make_optimizer
from dpt_jax.training.schedule import Schedule
from dpt_jax.training.step import StepConfig, make_step, new_state

IMAGES = flags.DEFINE_integer("images", 512, "JPEG files to load.", lower_bound=1)
PIXELS = flags.DEFINE_integer(
    "pixels", 500, "Their width; the height is three quarters of it.", lower_bound=16
)
WORKERS = flags.DEFINE_list(
    "workers", ["0", "1", "2"], "Loader processes, 0 for the threads of this one."
)
CLASSES = flags.DEFINE_integer(
    "classes", 100, "ImageNet's first so many class names.", lower_bound=1, upper_bound=1000
)
BATCH = flags.DEFINE_integer("batch", 32, "Images a batch.", lower_bound=1)
STEPS = 5
PASSES = 3
LOADED_AHEAD = 12  # batches; the loader keeps eight ready


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    files = max(IMAGES.value, CLASSES.value)
    if PASSES * files <= (LOADED_AHEAD + 1) * BATCH.value:
        sys.exit(
            f"--images={files} is too few: "
            f"give more than {(LOADED_AHEAD + 1) * BATCH.value // PASSES}."
        )
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        size = write_images(root, files, CLASSES.value, PIXELS.value)
        experiment = make_experiment(root)
        print(
            f"{files} JPEG files of {PIXELS.value} x {PIXELS.value * 3 // 4} pixels, "
            f"{size / 1000:.0f} kB each; {os.cpu_count()} cores, "
            f"Python {platform.python_version()}, jax {jax.__version__}, {jax.default_backend()}.\n"
        )
        print("| | train (images/s) | test (images/s) |\n| --- | --- | --- |")
        for workers in map(int, WORKERS.value):
            rates = [
                rate(functools.partial(batches, experiment, train, workers))
                for train in (True, False)
            ]
            name = f"loader, {workers} processes" if workers else "loader, threads"
            print(f"| {name} | {rates[0]:.0f} | {rates[1]:.0f} |", flush=True)
        batch = next(batches(experiment, train=False, workers=0))
        trained, tested = training_rate(experiment, batch), testing_rate(experiment, batch)
        print(f"| DPT, ViT-B/32 | {trained:.1f} | {tested:.1f} |")


def make_experiment(root: pathlib.Path) -> experiments.Experiment:
    """Return DPT on the images, on a backbone of random weights."""
    config = method_config("dpt", "folder")
    config.dataset.root, config.dataset.shots, config.train.batch_size = str(root), -1, BATCH.value
    return experiments.prepare(config, random_clip("vit-b-32", experiments.compute_dtype(config)))


def batches(experiment: experiments.Experiment, train: bool, workers: int) -> Iterator[Any]:
    """Return the batches of several passes over the images."""
    dataset, size = experiment.dataset, experiment.model.clip_config.image_size
    preprocessing = experiment.model.clip_config.preprocessing
    if train:
        return loader.train_batches(
            loader.TrainLoading(
                read=dataset.read,
                examples=dataset.train,
                size=size,
                preprocessing=preprocessing,
                batch_size=BATCH.value,
                epochs=PASSES,
                seed=0,
                workers=workers,
            )
        )
    return loader.test_batches(
        loader.Loading(
            read=dataset.read,
            examples=dataset.test * PASSES,
            size=size,
            preprocessing=preprocessing,
            batch_size=BATCH.value,
            workers=workers,
        )
    )


def rate(make: Callable[[], Iterator[Any]]) -> float:
    """Return images/s, after the start of the processes and the batches loaded ahead."""
    iterator = make()
    for _ in range(LOADED_AHEAD):
        next(iterator)
    began, images = time.perf_counter(), 0
    for batch in iterator:
        images += len(batch["label"])
    return images / (time.perf_counter() - began)


def training_rate(experiment: experiments.Experiment, batch: Any) -> float:
    """Return images/s of the training step."""
    prompts = adoption.initial_prompts(experiment)
    optimizer = make_optimizer()
    config = StepConfig(0.3)
    step = make_step(experiment.model, optimizer, config)
    state = new_state(experiment.model, config, prompts, optimizer)
    state = distributed.replicate(state)
    schedule = distributed.replicate(Schedule(0.01, 0.002, 1, 2, 1, 30).as_arrays())
    shards = loader.shard(batch, BATCH.value, jax.local_device_count())
    state = jax.block_until_ready(step(state, experiment.frozen, shards, schedule))
    began = time.perf_counter()
    for _ in range(STEPS):
        state = jax.block_until_ready(step(state, experiment.frozen, shards, schedule))
    return STEPS * len(batch["label"]) / (time.perf_counter() - began)


def testing_rate(experiment: experiments.Experiment, batch: Any) -> float:
    """Return images/s of the prompted model with the text features given."""
    classifier, frozen = make_programs(experiment.model), experiment.frozen
    prompts = distributed.replicate(adoption.initial_prompts(experiment))
    texts = classifier.encode_texts(frozen, prompts)
    images = loader.shard(batch, BATCH.value, jax.local_device_count())["image"]
    jax.block_until_ready(classifier.classify(frozen, prompts, texts, images))
    began = time.perf_counter()
    for _ in range(STEPS):
        jax.block_until_ready(classifier.classify(frozen, prompts, texts, images))
    return STEPS * len(batch["label"]) / (time.perf_counter() - began)


if __name__ == "__main__":
    app.run(main)
