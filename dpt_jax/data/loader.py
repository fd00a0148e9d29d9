"""Batches of uint8 images by Grain, from any step on, with the augmentation of training images.

They are the same for the same seed, with any number of workers, threads and hosts.
"""

import dataclasses
import functools
import math
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags
from PIL import Image

from dpt_jax.clip.config import CLIP_PREPROCESSING, Preprocessing
from dpt_jax.data import records
from dpt_jax.data.records import Example, Reader, UnreadableImageError
from dpt_jax.errors import UserError

# Host arrays: image (B, H, W, 3) uint8, label (B,) int32, index (B,) int32 into the examples,
# weight (B,) float32, 0 for an image that could not be read and is black.
Batch = dict[str, Any]

# Threads that decode images in one process: one per core, but at least 4, since reading blocks.
LEAST_THREADS, MOST_THREADS = 4, 32
QUIET_TRACKER = "ignore:resource_tracker:UserWarning"
ON_DEVICES = 2  # batches whose transfer has started, without the one in use

# Random crops as published: the smallest area, the aspect ratios, and draws before a centre crop.
LEAST_AREA, RATIO, ATTEMPTS = 0.08, (3 / 4, 4 / 3), 10


def train_transform(
    image: Image.Image,
    size: int,
    generator: np.random.Generator,
    preprocessing: Preprocessing = CLIP_PREPROCESSING,
    least_area: float = LEAST_AREA,
) -> np.ndarray:
    """Return a random resized crop, flipped half the time: (size, size, 3) uint8."""
    box = random_box(*image.size, generator, least_area)
    image = image.crop(box).resize((size, size), preprocessing.resample)
    if generator.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image)


def random_box(
    width: int, height: int, generator: np.random.Generator, least_area: float = LEAST_AREA
) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) of a random crop, as torchvision's RandomResizedCrop.

    Its aspect ratio is log-uniform in RATIO. If no draw fits, it is the nearest centre crop.
    """
    for _ in range(ATTEMPTS):
        area = width * height * generator.uniform(least_area, 1.0)
        ratio = math.exp(generator.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left = int(generator.integers(width - wide + 1))
            top = int(generator.integers(height - high + 1))
            return left, top, left + wide, top + high
    ratio = min(max(width / height, RATIO[0]), RATIO[1])
    wide, high = min(width, round(height * ratio)), min(height, round(width / ratio))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


def shifted(pixels: np.ndarray, most: int, generator: np.random.Generator) -> np.ndarray:
    """Return (H, W, 3) pixels moved by up to `most` in each direction, with the edge repeated."""
    right, down = generator.integers(-most, most + 1, 2)
    height, width = pixels.shape[:2]
    padded = np.pad(pixels, ((most, most), (most, most), (0, 0)), mode="edge")
    top, left = most - down, most - right
    return padded[top : top + height, left : left + width]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loading:
    """What is loaded, and how. From `epochs` on, fields are for training images only."""

    read: Reader
    examples: Sequence[Example]  # in order
    size: int  # pixels on a side
    batch_size: int  # rows of this host in test_batches, of all hosts in train_batches
    preprocessing: Preprocessing = CLIP_PREPROCESSING
    workers: int = 0  # loader processes, 0 for threads of this one
    skip_unreadable: bool = False  # make such images black without weight; do not end the run
    host: int = 0  # this host gets row `host` of every `hosts` rows
    hosts: int = 1
    epochs: int = 1
    seed: int = 0  # decides the order and the augmentation
    augment: bool = True  # take a random crop, mirrored half the time
    least_area: float = LEAST_AREA  # of the crop, as a fraction of the image
    shift: int = 0  # at most, after that, in pixels of the (size, size) image
    partial: bool = False  # whether an incomplete last batch of an epoch is kept

    def load(
        self, numbered: tuple[int, Example], generator: np.random.Generator | None = None
    ) -> Batch:
        """Return the row of an (index, example), augmented if there is a generator."""
        (index, example), weight = numbered, 1.0
        try:
            image = self.read(example.path)
        except UnreadableImageError as reason:
            if not self.skip_unreadable:
                raise UnreadableImageError(
                    f"{str(reason).removesuffix('.')}: repair it, or use dataset.on_error=skip."
                ) from reason
            # Batches keep their size and order, so that a run can resume. The row has no weight.
            image, weight = Image.new("RGB", (self.size, self.size)), 0.0
        if generator and self.augment:
            area = self.least_area
            pixels = train_transform(image, self.size, generator, self.preprocessing, area)
        else:
            pixels = self.preprocessing.transform(image, self.size)
        if generator and self.shift:
            pixels = shifted(pixels, self.shift, generator)
        return {
            "image": pixels,
            "label": np.int32(example.label),
            "index": np.int32(index),
            "weight": np.float32(weight),
        }


def steps_per_epoch(examples: int, batch_size: int, partial: bool = False) -> int:
    """Return the batches of an epoch; an incomplete one counts if `partial`, or if it is alone."""
    return max(-(-examples // batch_size) if partial else examples // batch_size, 1)


@dataclasses.dataclass(frozen=True)
class _Steps:
    """This host's batches from step `start` to the last, of `rows` rows on all hosts together.

    The images of a step are chosen here: if a data set is sliced and repeated, some versions of
    Grain repeat its first epoch.
    """

    config: Loading
    images: grain.MapDataset
    rows: int
    start: int

    @property
    def per_epoch(self) -> int:
        return steps_per_epoch(len(self.images), self.rows, self.config.partial)

    def __len__(self) -> int:
        return max(self.config.epochs * self.per_epoch - self.start, 0)

    def __getitem__(self, index: int) -> Batch:
        an_epoch, config = len(self.images), self.config
        epoch, step = divmod(index + self.start, self.per_epoch)
        rows = range(config.host, min(self.rows, an_epoch - step * self.rows), config.hosts)
        loaded = [self.images[epoch * an_epoch + step * self.rows + row] for row in rows]
        if not loaded:  # the other hosts have the last images of the epoch
            numbers = {"label": np.int32, "index": np.int32, "weight": np.float32}
            image = np.zeros((0, config.size, config.size, 3), np.uint8)
            return {"image": image} | {name: np.zeros(0, kind) for name, kind in numbers.items()}
        return {name: np.stack([image[name] for image in loaded]) for name in loaded[0]}


def train_batches(
    config: Loading, start: int = 0, transfer: Callable[[Batch], Any] | None = None
) -> Iterator[Any]:
    """Return the batches of a training from number `start` on, shuffled and augmented every epoch.

    Together, the hosts get the rows that one host would get. `transfer` copies a batch to the
    devices, in a thread.
    """
    rows, hosts = min(config.batch_size, len(config.examples)), config.hosts
    if rows < hosts or (rows % hosts and rows == config.batch_size):
        raise UserError(
            f"{hosts} hosts cannot share batches of {rows} images: give as train.batch_size a "
            f"multiple of {hosts}, and at least {hosts} training images."
        )
    if config.shift >= config.size:
        raise UserError(
            f"train.shift is {config.shift}: it must be less than the images' size, {config.size}."
        )
    images = grain.MapDataset.source(list(enumerate(config.examples))).seed(config.seed).shuffle()
    config = dataclasses.replace(config, examples=())  # each process gets them one at a time
    return _read(_Steps(config, images.random_map(config.load), rows, start), transfer)


def test_batches(config: Loading, views: int = 0) -> Iterator[Batch]:
    """Return the examples in order, in equally many batches on all hosts; the last may be empty.

    With `views`, return this number of augmented views: one of all examples, then the next.
    """
    # This repeats the list, not the data set: some versions of Grain would repeat the views.
    numbered = list(enumerate(config.examples)) * max(views, 1)
    images = grain.MapDataset.source(numbered).seed(config.seed)
    config = dataclasses.replace(config, examples=(), epochs=1, partial=True)
    loaded = images.random_map(config.load) if views else images.map(config.load)
    return _read(_Steps(config, loaded, config.batch_size * config.hosts, 0))


def threads(workers: int = 0) -> int:
    """Return the number of threads that decode images in each loader process, or in this one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(max((cores or 1) // max(workers, 1), LEAST_THREADS), MOST_THREADS)


def _read(steps: _Steps, transfer: Callable[[Batch], Any] | None = None) -> Iterator[Any]:
    workers = steps.config.workers
    own = threads(workers)
    options = grain.ReadOptions(num_threads=own, prefetch_buffer_size=own + LEAST_THREADS)
    batches = grain.MapDataset.source(steps).to_iter_dataset(options)
    if workers:
        flags.FLAGS.mark_as_parsed()  # Grain reads its own flags, even if absl is not used
        # Python passes these to its resource tracker, which removes what a killed process leaves.
        if QUIET_TRACKER not in sys.warnoptions:
            sys.warnoptions.append(QUIET_TRACKER)
        batches = batches.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers),
            functools.partial(_start_worker, records.cache.limit // workers),
        )
    if transfer:
        batches = grain.experimental.ThreadPrefetchIterDataset(
            batches.map(transfer), prefetch_buffer_size=ON_DEVICES
        )
    try:
        yield from batches
    except UserError as reason:
        # Some versions of Grain append notes on their own traceback to the message.
        raise type(reason)(str(reason).partition("\n")[0]) from reason
    except RuntimeError as reason:
        if "terminated unexpectedly" not in str(reason):
            raise
        raise UserError(
            "a loader process was killed, perhaps for lack of memory: run the same command again, "
            "if need be with fewer processes (--config.dataset.workers)."
        ) from reason


def _start_worker(cached_bytes: int, worker: int, workers: int) -> None:
    # Ctrl-C and a scheduler's SIGTERM reach loader processes too, but only the run may end them: a
    # process that dies while holding one of Grain's locks would keep the run from ending.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    records.cache.limit = cached_bytes
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent does, which may have been killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def shard(batch: Batch, rows: int, devices: int, multiple: int = 1) -> Batch:
    """Return the batch padded with zeros to `rows` and split over the devices: (devices, b, …).

    b is rounded up to a multiple.
    """
    rows = -(-rows // (devices * multiple)) * devices * multiple
    missing = rows - len(batch["label"])
    return {
        name: np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)).reshape(
            devices, rows // devices, *x.shape[1:]
        )
        for name, x in batch.items()
    }
