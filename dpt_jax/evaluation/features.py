"""Batches of test images with frozen CLIP's features, which are cached in memory.

No prompt changes the features of frozen CLIP. The runs of a sweep compute them once.
"""

from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from dpt_jax import distributed
from dpt_jax.data import loader
from dpt_jax.training.setup import Experiment, shared_loading

# (parameters of CLIP, images (devices, b, H, W, 3)) -> frozen CLIP's features (devices, b, E)
Encode = Callable[[Any, np.ndarray], jax.Array]


class EncodedBatch(NamedTuple):
    """A batch of this host's test images, padded and split over its devices.

    Attributes:
        known: label, index and weight of the images, without padding.
        images: (devices, b, H, W, 3) uint8, or None if only the features are cached.
        features: (devices, b, E) float32, of frozen CLIP.
    """

    known: loader.Batch
    images: np.ndarray | None
    features: jax.Array


# Of each test split that this process has evaluated on: its batches, without images.
FeatureCache = dict[Hashable, list[EncodedBatch]]


def read_test_images(
    experiment: Experiment, rows: int, steps: int, encode: Encode
) -> Iterator[EncodedBatch]:
    """Yield this host's test images with their features.

    Cached features are not computed again. Images are read again only for methods with visual
    prompts.

    Args:
        experiment: its `features` is the cache, or None for no cache.
        rows: images of a batch on this host.
        steps: number of batches, the same on all hosts. The last ones may be empty.
        encode: frozen CLIP's image tower.
    """
    cache, key = experiment.features, _key(experiment, rows)
    cached = cache.get(key) if cache is not None else None
    # All hosts encode together or none does.
    if not distributed.on_all_hosts(cached is not None):
        cached = None
    if cached and not experiment.model.config.learns_images:
        yield from cached
        return
    read = []
    for step, batch in enumerate(_batches(experiment, rows, steps)):
        images = loader.shard(batch, rows, jax.local_device_count())["image"]
        features = cached[step].features if cached else encode(experiment.frozen.clip, images)
        known = {name: batch[name] for name in ("label", "index", "weight")}
        read.append(EncodedBatch(known, None, features))
        yield EncodedBatch(known, images, features)
    if cache is not None:
        cache[key] = read


def _batches(experiment: Experiment, rows: int, steps: int) -> Iterator[loader.Batch]:
    """Yield `steps` batches of this host's test images."""
    loading = loader.Loading(
        **shared_loading(experiment), examples=experiment.dataset.test, batch_size=rows
    )
    batches, nothing = loader.test_batches(loading), loader.no_images(loading.size)
    for _ in range(steps):
        yield next(batches, nothing)


def _key(experiment: Experiment, rows: int) -> Hashable:
    """Return what the features depend on: images, CLIP and how they are batched.

    CLIP by its name: runs of one process that name the same weights share them.
    """
    config, dataset, model = experiment.config, experiment.dataset, experiment.model
    images = tuple((dataset.read.key(example.path), example.label) for example in dataset.test)
    return (
        images,
        config.dataset.on_error,
        config.clip.weights,
        model.dtype,
        model.clip_config,
        rows,
    )
