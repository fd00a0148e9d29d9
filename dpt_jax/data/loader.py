"""Batches of uint8 images by Grain: the same for the same seed, with any number of workers, resumable."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from dpt_jax.data.sampling import Example
from dpt_jax.data.transforms import read_image, test_transform, train_transform

Batch = dict[str, Any]  # host arrays: image (B, H, W, 3) uint8, label (B,) int32


@dataclasses.dataclass(frozen=True)
class _Load:
    """Example -> its image and label; with a generator, the augmented image."""

    root: pathlib.Path
    size: int

    def __call__(self, example: Example, generator: np.random.Generator | None = None) -> Batch:
        image = read_image(self.root / example.path)
        pixels = test_transform(image, self.size) if generator is None else train_transform(image, self.size, generator)
        return {"image": pixels, "label": np.int32(example.label)}


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Batches an epoch: the last partial one is dropped where there is a full one."""
    return max(examples // batch_size, 1)


def train_batches(
    root: pathlib.Path,
    examples: Sequence[Example],
    size: int,
    batch_size: int,
    epochs: int,
    seed: int,
    augment: bool,
    workers: int = 0,
) -> grain.DatasetIterator:
    """All batches of a training run, newly shuffled and augmented every epoch.

    Fewer examples than batch_size make one smaller batch an epoch. The
    iterator's state is a position, so a run can be resumed within an epoch.
    """
    load = _Load(root, size)
    data = grain.MapDataset.source(list(examples)).seed(seed).shuffle()
    data = data.random_map(load) if augment else data.map(load)
    data = data.batch(batch_size, drop_remainder=len(examples) >= batch_size).repeat(epochs)
    return iter(_read(data, workers))


def test_batches(
    root: pathlib.Path, examples: Sequence[Example], size: int, batch_size: int, workers: int = 0
) -> grain.DatasetIterator:
    """The examples in their order, the last batch as small as it comes."""
    data = grain.MapDataset.source(list(examples)).map(_Load(root, size)).batch(batch_size, drop_remainder=False)
    return iter(_read(data, workers))


def _read(data: grain.MapDataset, workers: int) -> grain.IterDataset:
    batches = data.to_iter_dataset(grain.ReadOptions(num_threads=4, prefetch_buffer_size=8))
    return batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers)) if workers else batches


def shard(batch: Batch, rows: int, devices: int) -> Batch:
    """The batch padded to `rows` (rounded up to the devices) and split over them: (devices, b, …).

    Adds `weight`, float32: 1 for the batch's own rows, 0 for the padding.
    """
    rows = -(-rows // devices) * devices
    own = len(batch["label"])

    def split(x: np.ndarray) -> np.ndarray:
        padded = np.concatenate([x, np.zeros((rows - own, *x.shape[1:]), x.dtype)])
        return padded.reshape(devices, rows // devices, *x.shape[1:])

    return {name: split(x) for name, x in {**batch, "weight": np.ones(own, np.float32)}.items()}
