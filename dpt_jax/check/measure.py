"""Whether steps repeat bit for bit, how fast they are, and whether images come fast enough."""

import contextlib
import io
import pathlib
import signal
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from dpt_jax import distributed
from dpt_jax.check import programs
from dpt_jax.check.rows import Row, at_most
from dpt_jax.clip.pretrained import Pretrained
from dpt_jax.config import method_config
from dpt_jax.data import loader, records
from dpt_jax.data.catalogue import imagenet_classnames
from dpt_jax.data.folder import find_images
from dpt_jax.data.records import Dataset, Example, Files
from dpt_jax.io import as_path
from dpt_jax.training import flops
from dpt_jax.training.checkpoints import load_newest
from dpt_jax.training.initial_prompts import initial_prompts
from dpt_jax.training.loop import train
from dpt_jax.training.metrics import TIMES, read_metrics
from dpt_jax.training.process import Stopped
from dpt_jax.training.setup import Experiment, assemble, compute_dtype, prepare
from dpt_jax.training.state import make_plan, train_batches
from dpt_jax.training.step import make_step, new_state

BATCH = 32
ROUNDING = 1e-4  # relative to the prompts' norm, after a float32 step on fewer devices


def same_bits() -> list[Row]:
    """Repeat a step, and a run that is stopped and resumed, on the bundled CLIP and digits."""
    config = method_config("dpt", "digits")
    config.clip.weights, config.dataset.shots, config.dtype = "tiny-clip", 1, "float32"
    config.train.epochs, config.train.batch_size = 3, 8
    silent = io.StringIO()
    with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
        experiment = prepare(config)
        here = tuple(jax.local_devices())
        one, again = (_step(experiment, here) for _ in range(2))
        rows = [_equal("a step twice", one, again)]
        if len(here) > 1:
            alone = _step(experiment, here[:1])
            error = _distance(one, alone)
            rows.append(at_most("same bits", f"{len(here)} devices against one", error, ROUNDING))
        if jax.process_count() == 1:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(_stopped_and_whole(experiment, pathlib.Path(folder)))
    return rows


def _step(experiment: Experiment, devices: tuple[jax.Device, ...]) -> Any:
    """Return the prompts after the first step of a run."""
    plan = make_plan(experiment.config, len(experiment.dataset.train))
    images = next(train_batches(experiment, plan, 0))
    batch = loader.shard(images, plan.images_per_host, len(devices))
    state = new_state(experiment.model, plan.step, initial_prompts(experiment), plan.optimizer)
    frozen = distributed.to_host((experiment.pretrained.params, experiment.texts))
    given: Any = jax.tree.map(
        lambda x: np.stack([np.asarray(x)] * len(devices)),
        (state, frozen, plan.schedule.as_arrays()),
    )
    state, (clip, texts), schedule = given
    step = make_step(experiment.model, plan.optimizer, plan.step, devices)
    return distributed.to_host(step(state, clip, texts, batch, schedule).prompts)


def _stopped_and_whole(experiment: Experiment, folder: pathlib.Path) -> Row:
    """Train twice, once stopped after the first epoch by SIGTERM and resumed."""

    def stop(values: dict[str, float]) -> None:
        if values["epoch"] == 1:
            signal.raise_signal(signal.SIGTERM)

    whole, stopped = as_path(folder / "whole"), as_path(folder / "stopped")
    train(experiment, whole)
    with contextlib.suppress(Stopped):
        train(experiment, stopped, callbacks=[stop])
    before = load_newest(stopped).step
    train(experiment, stopped)
    row = _equal(
        f"a run stopped at step {before} and resumed",
        *(
            (load_newest(run).prompts, [
                {key: value for key, value in record.items() if key not in TIMES}
                for record in read_metrics(run)
            ])
            for run in (whole, stopped)
        ),
    )  # fmt: skip
    return row._replace(ok=row.ok and before < load_newest(whole).step)


def _equal(name: str, one: Any, other: Any) -> Row:
    """Return the row of two trees that must be the same to the last bit."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    different = sum(int((np.asarray(a) != np.asarray(b)).sum()) for a, b in pairs)
    return Row("same bits", name, f"{different} values differ", "0", different == 0)


def _distance(one: Any, other: Any) -> float:
    """Return the largest distance of arrays of two trees, relative to the norm of the second."""
    distances = jax.tree.map(lambda a, b: np.linalg.norm(a - b) / np.linalg.norm(b), one, other)
    return float(max(jax.tree.leaves(distances)))


def settings() -> ConfigDict:
    """Return the settings of the step that is timed."""
    config = method_config("dpt", "imagenet")
    config.text_prompt.init = ""
    return config


def speed(clip: str, pretrained: Pretrained, quick: bool) -> tuple[list[Row], float]:
    """Time a step of DPT on a CLIP; return the rows and its images/s."""
    classes, each = (10, 8) if quick else (100, BATCH)
    config = settings()
    dtype = compute_dtype(config)
    names = tuple(imagenet_classnames()[:classes])
    dataset = Dataset(Files(as_path(".")), names, train=[], val=[], test=[])
    with contextlib.redirect_stdout(io.StringIO()):
        experiment = assemble(config, dataset, pretrained)
    devices = jax.local_device_count()
    work = programs.training(experiment, _batch(each, classes, pretrained.config.image_size))
    first, seconds = programs.times(work.run, 2 if quick else 10)
    rate = devices * flops.of(work.program, *work.arguments) / seconds
    product = _product_rate(dtype, 2048 if quick else 8192)
    images = each * devices / seconds
    figures = {
        "compiling": f"{first - seconds:.1f} s",
        "step": f"{1e3 * seconds:.1f} ms",
        "images/s": f"{images:.1f}",
        "TFLOP/s": f"{rate / 1e12:.3g}",
        "share of a matrix product": f"{rate / product:.0%} of {product / 1e12:.3g} TFLOP/s",
    }
    if peak := flops.peak(jax.devices()[0].device_kind):
        figures["share of chip peak"] = f"{rate / peak / devices:.0%} of {peak / 1e12:.0f} TFLOP/s"
    if stats := jax.local_devices()[0].memory_stats():
        figures["peak memory of a device"] = f"{stats['peak_bytes_in_use'] / 1e9:.2f} GB"
    if not quick:
        figures["largest batch of a device"] = _largest_batch(experiment, work, classes)
    what = f"DPT, {clip}, {classes} classes, {each} images per device, {jnp.dtype(dtype).name}"
    return [Row("speed", what, "")] + [Row("speed", *each) for each in figures.items()], images


def _batch(images: int, classes: int, size: int) -> loader.Batch:
    """Return random images for each device."""
    shape, generator = (jax.local_device_count(), images), np.random.default_rng(0)
    return {
        "image": generator.integers(0, 256, (*shape, size, size, 3), np.uint8),
        "label": generator.integers(0, classes, shape, np.int32),
        "index": np.zeros(shape, np.int32),
        "weight": np.ones(shape, np.float32),
    }


def _product_rate(dtype: Any, size: int) -> float:
    """Return the operations per second of a matrix product on all devices at once."""
    devices, multiply = jax.local_device_count(), jax.pmap(jnp.matmul)
    a = jax.pmap(lambda x: jnp.full((size, size), x, dtype))(jnp.full(devices, 0.01))
    seconds = programs.times(lambda: jax.block_until_ready(multiply(a, a)), 5)[1]
    return 2 * devices * size**3 / seconds


def _largest_batch(experiment: Experiment, work: programs.Work, classes: int) -> str:
    """Return how many images fit a device, extrapolated from two batches."""
    state, frozen, _, schedule = work.arguments
    size, needed = experiment.model.clip_config.image_size, {}
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    for images in (BATCH, 2 * BATCH):
        program = work.program.lower(state, frozen, _batch(images, classes, size), schedule)
        found = program.compile().memory_analysis()
        needed[images] = found.argument_size_in_bytes + found.temp_size_in_bytes
    each = (needed[2 * BATCH] - needed[BATCH]) / BATCH
    stats = jax.local_devices()[0].memory_stats()
    has = stats["bytes_limit"] if stats else records.free_memory()
    return f"{int((has - needed[BATCH]) / each) + BATCH} (as the compiler reports)"


def pipeline(data: str, needed: float, quick: bool) -> list[Row]:
    """Measure loading from files and from memory, against a step's speed.

    Args:
      data: a folder of images, "" for generated JPEGs.
      needed: images/s of the step.
      quick: load fewer.
    """
    count = 4 * BATCH if quick else 16 * BATCH
    with tempfile.TemporaryDirectory() as made:
        folder = data or write_jpegs(pathlib.Path(made), count)
        files = find_images([str(folder)])[:count]
        before, records.cache = records.cache, records.ImageCache()
        try:
            first, later = _rate(files, 1), _rate(files, 4)
        finally:
            records.cache = before
    threads = loader.threads()
    bound = f">= {needed:.0f} (the step)"
    return [
        Row("input", f"first epoch, {threads} threads", f"{first:.0f} images/s"),
        Row("input", "later epochs", f"{later:.0f} images/s", bound, later >= needed),
    ]


def write_jpegs(folder: pathlib.Path, count: int, width: int = 500, height: int = 375) -> str:
    """Write images that compress about as photographs: smooth random colours with noise."""
    generator = np.random.default_rng(0)
    for number in range(count):
        colours = Image.fromarray(generator.integers(0, 256, (12, 16, 3), np.uint8))
        smooth = np.asarray(colours.resize((width, height), Image.Resampling.BICUBIC), np.int16)
        noisy = smooth + generator.integers(-12, 13, smooth.shape)
        image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        image.save(folder / f"{number:06d}.jpg", quality=90)
    return str(folder)


def _rate(files: list[str], epochs: int) -> float:
    """Return images/s of each epoch, including the copy to the devices."""
    devices = jax.local_device_count()
    loading = loader.Loading(
        read=Files(as_path("/")),
        examples=[Example(str(as_path(file).absolute()), 0) for file in files],
        size=224,
        batch_size=BATCH,
        epochs=epochs,
        seed=0,
    )

    def transfer(batch: loader.Batch) -> loader.Batch:
        placed: loader.Batch = distributed.place(loader.shard(batch, BATCH, devices))
        return placed

    began = time.perf_counter()
    batches: Iterator[loader.Batch] = loader.train_batches(loading, transfer=transfer)
    steps = sum(1 for batch in batches if jax.block_until_ready(batch))
    return steps * min(BATCH, len(files)) / (time.perf_counter() - began)
