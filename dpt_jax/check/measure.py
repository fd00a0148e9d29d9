"""What `dpt-jax check` and benchmarks/ time: steps of CLIPs with random weights, and the loader."""

import dataclasses
import pathlib
import statistics
import time
import timeit
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from PIL import Image

from dpt_jax import distributed
from dpt_jax.clip.blocks import Params
from dpt_jax.clip.config import OPENAI_MODELS, CLIPConfig, TransformerConfig
from dpt_jax.clip.model import param_shapes
from dpt_jax.clip.pretrained import FLOAT32, Pretrained
from dpt_jax.clip.tokenizer import openai_tokenizer
from dpt_jax.data import loader, records
from dpt_jax.data.records import Example, Files
from dpt_jax.io import as_path
from dpt_jax.training.saved import initial_prompts
from dpt_jax.training.setup import Experiment, consistency_target
from dpt_jax.training.state import make_plan, new_state
from dpt_jax.training.step import make_step

BATCH = 32  # images that are loaded at a time
_SMALL = TransformerConfig(64, 4, 1, 256)
SIZES = {
    "vit-b-32": OPENAI_MODELS["ViT-B/32"],
    "vit-b-16": OPENAI_MODELS["ViT-B/16"],
    "vit-l-14": OPENAI_MODELS["ViT-L/14"],
    # Not a published size: for a benchmark in seconds.
    "small": CLIPConfig(64, 224, 32, _SMALL, dataclasses.replace(_SMALL, layers=12)),
}


def random_clip(name: str, dtype: DTypeLike = np.float32) -> Pretrained:
    """Return a CLIP of SIZES with weights N(0, 0.02²) and neutral layer norms."""
    generator = np.random.default_rng(0)

    def draw(path: Any, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        kind = path[-1].key
        if kind in ("scale", "bias"):
            return np.full(shape.shape, float(kind == "scale"), shape.dtype)
        values = generator.standard_normal(shape.shape, np.float32)
        values *= np.float32(0.02)
        return values.astype(shape.dtype)

    params = jax.tree_util.tree_map_with_path(draw, clip_shapes(name, dtype))
    params["logit_scale"] = np.float32(np.log(100))
    return Pretrained(SIZES[name], params, openai_tokenizer())


def clip_shapes(name: str, dtype: DTypeLike) -> Params:
    """Return the shapes of a CLIP of SIZES, in the types that `load_clip` gives its parameters."""
    flat = flax.traverse_util.flatten_dict(param_shapes(SIZES[name]), sep="/")
    types = {
        path: jax.ShapeDtypeStruct(x.shape, np.float32 if FLOAT32.match(path) else dtype)
        for path, x in flat.items()
    }
    return flax.traverse_util.unflatten_dict(types, sep="/")


class Work(NamedTuple):
    """A function that runs a program to completion, the program, and its arguments."""

    run: Callable[[], None]
    program: Any
    arguments: tuple[Any, ...]


def training(experiment: Experiment, batch: loader.Batch) -> Work:
    """Return the training step.  batch: with a leading axis of devices."""
    plan = make_plan(experiment.config, batch["label"].size)
    clip = experiment.pretrained.params
    texts = experiment.texts._replace(target=consistency_target(experiment))
    step = make_step(experiment.model, plan.step)
    schedule = distributed.replicate(plan.schedule.as_arrays())
    new = new_state(experiment.model, plan, initial_prompts(experiment))
    state = distributed.replicate(new)
    arguments = state, clip, texts, batch, schedule

    def run() -> None:
        nonlocal state  # the step donates it
        state = jax.block_until_ready(step(state, clip, texts, batch, schedule))

    return Work(run, step, arguments)


def compiled(work: Work) -> tuple[float, dict[str, int]]:
    """Compile a program; return the seconds, and a device's bytes as the compiler reports them."""
    began = time.perf_counter()
    analysis = work.program.lower(*work.arguments).compile().memory_analysis()
    seconds = time.perf_counter() - began  # the first step then finds the program compiled
    parts = ("argument", "output", "alias", "temp")
    sizes = {name: getattr(analysis, f"{name}_size_in_bytes") for name in parts}
    sizes["together"] = sizes["argument"] + sizes["output"] - sizes["alias"] + sizes["temp"]
    return seconds, sizes


def random_batch(images: int, classes: int, size: int) -> loader.Batch:
    """Return this number of random images (size, size) for each device."""
    shape, generator = (jax.local_device_count(), images), np.random.default_rng(0)
    return {
        "image": generator.integers(0, 256, (*shape, size, size, 3), np.uint8),
        "label": generator.integers(0, classes, shape, np.int32),
        "index": np.zeros(shape, np.int32),
        "weight": np.ones(shape, np.float32),
    }


def times(step: Callable[[], object], steps: int) -> tuple[float, float]:
    """Return the seconds of the first call, and the median of `steps` (at least one) later ones."""
    first, *later = timeit.repeat(step, number=1, repeat=1 + max(steps, 1))
    return first, statistics.median(later)


def product_rate(dtype: DTypeLike, size: int, steps: int = 5) -> float:
    """Return the operations per second of a matrix product on all devices at once."""
    devices, multiply = jax.local_device_count(), jax.pmap(jnp.matmul)
    a = jax.pmap(lambda x: jnp.full((size, size), x, dtype))(jnp.full(devices, 0.01))
    seconds = times(lambda: jax.block_until_ready(multiply(a, a)), steps)[1]
    return 2 * devices * size**3 / seconds


def write_jpegs(folder: pathlib.Path, count: int, width: int = 500, height: int = 375) -> None:
    """Write images that compress about as well as photographs: smooth random colours with noise."""
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
