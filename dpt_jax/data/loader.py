"""Batches of uint8 images by Grain: the same for the same seed, with any number of workers and hosts, from any step."""

import dataclasses
import signal
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np
from PIL import Image

from dpt_jax.clip.preprocessing import CLIP_PREPROCESSING, Preprocessing
from dpt_jax.data.records import Example, Reader, UnreadableImageError
from dpt_jax.data.transforms import test_transform, train_transform
from dpt_jax.errors import UserError

# Host arrays: image (B, H, W, 3) uint8, label (B,) int32, index (B,) int32 into the examples,
# weight (B,) float32, 0 for an image that could not be read and is black.
Batch = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Load:
    """(index, example) -> its image and label; with a generator, the augmented image."""

    read: Reader
    size: int
    skip_unreadable: bool
    preprocessing: Preprocessing

    def __call__(
        self, numbered: tuple[int, Example], generator: np.random.Generator | None = None
    ) -> Batch:
        index, example = numbered
        weight = 1.0
        try:
            image = self.read(example.path)
        except UnreadableImageError as reason:
            if not self.skip_unreadable:
                raise UnreadableImageError(
                    f"{str(reason).removesuffix('.')}, though the dataset has it: repair or remove it, or leave such "
                    "images out with --config.dataset.on_error=skip."
                ) from reason
            # Batches keep their size and order, so that a run can be resumed; the row counts for nothing.
            image, weight = Image.new("RGB", (self.size, self.size)), 0.0
        pixels = (
            test_transform(image, self.size, self.preprocessing)
            if generator is None
            else train_transform(image, self.size, generator, self.preprocessing)
        )
        return {
            "image": pixels,
            "label": np.int32(example.label),
            "index": np.int32(index),
            "weight": np.float32(weight),
        }


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Batches an epoch: the last partial one is dropped where there is a full one."""
    return max(examples // batch_size, 1)


def train_batches(
    read: Reader,
    examples: Sequence[Example],
    size: int,
    batch_size: int,
    epochs: int,
    seed: int,
    augment: bool,
    workers: int = 0,
    skip_unreadable: bool = False,
    start: int = 0,
    host: int = 0,
    hosts: int = 1,
    preprocessing: Preprocessing = CLIP_PREPROCESSING,
) -> grain.DatasetIterator:
    """The batches of a training run from number `start` on, newly shuffled and augmented every epoch.

    Fewer examples than batch_size make one smaller batch an epoch. Of every
    batch this host gets each `hosts`-th row, from row `host` on; together they
    have the rows that one host would have. Raises UserError where the rows of a
    batch cannot be shared equally.
    """
    rows = min(batch_size, len(examples))
    if rows % hosts and rows == batch_size:
        raise UserError(
            f"train.batch_size is {batch_size}: it must be a multiple of the {hosts} hosts."
        )
    if rows < hosts:
        raise UserError(f"{len(examples)} training images cannot be shared by {hosts} hosts.")
    load = _Load(read, size, skip_unreadable, preprocessing)
    data = grain.MapDataset.source(list(enumerate(examples))).seed(seed).shuffle()
    data = data.random_map(load) if augment else data.map(load)
    data = data[: rows * steps_per_epoch(len(examples), batch_size)][host::hosts]
    data = data.batch(-(-rows // hosts)).repeat(epochs)
    return _read(data[start:], workers)


def test_batches(
    read: Reader,
    examples: Sequence[Example],
    size: int,
    batch_size: int,
    workers: int = 0,
    skip_unreadable: bool = False,
    host: int = 0,
    hosts: int = 1,
    preprocessing: Preprocessing = CLIP_PREPROCESSING,
) -> grain.DatasetIterator:
    """The examples in their order, or each `hosts`-th of them from `host` on; the last batch as small as it comes."""
    load = _Load(read, size, skip_unreadable, preprocessing)
    data = grain.MapDataset.source(list(enumerate(examples))).map(load)[host::hosts]
    return _read(data.batch(batch_size, drop_remainder=False), workers)


def _read(data: grain.MapDataset, workers: int) -> grain.DatasetIterator:
    batches = data.to_iter_dataset(grain.ReadOptions(num_threads=4, prefetch_buffer_size=8))
    if workers:
        batches = batches.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers), _leave_ctrl_c_to_the_run
        )
    return iter(batches)


def _leave_ctrl_c_to_the_run(worker: int, workers: int) -> None:
    """Ctrl-C goes to the loader's processes too, but it is the run that stops, and ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def shard(batch: Batch, rows: int, devices: int, multiple: int = 1) -> Batch:
    """The batch padded to `rows` and split over the devices: (devices, b, …), b rounded up to a multiple.

    The padding is zeros, its `weight` too. The index stays on the host.
    """
    rows = -(-rows // (devices * multiple)) * devices * multiple
    own = len(batch["label"])

    def split(x: np.ndarray) -> np.ndarray:
        padded = np.concatenate([x, np.zeros((rows - own, *x.shape[1:]), x.dtype)])
        return padded.reshape(devices, rows // devices, *x.shape[1:])

    return {name: split(x) for name, x in batch.items() if name != "index"}
