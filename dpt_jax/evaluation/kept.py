"""What a process keeps of test images for its next evaluations.

No prompt changes an image, nor what plain CLIP makes of it: the runs of a sweep read both once.
"""

from collections.abc import Hashable
from typing import NamedTuple

import jax
import numpy as np

from dpt_jax.data.loader import Batch

KEPT_BYTES = 2 * 2**30  # of pixels, which is 14,000 images of 224 x 224


class KeptBatch(NamedTuple):
    """A batch of this host's test images, of which its devices have equal shares, padded.

    known: label, index and weight of the images, without padding. images: (devices, b, H, W, 3)
    uint8, None where only the rest is kept. features: (devices, b, E) float32, z of plain CLIP.
    """

    known: Batch
    images: np.ndarray | None
    features: jax.Array


class KeptImages:
    """Batches of the datasets that a process has evaluated on: features, and pixels up to a limit.

    The pixels that were kept first are the first to go.
    """

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        """limit: bytes of pixels."""
        self._limit = limit
        self._batches: dict[Hashable, list[KeptBatch]] = {}

    def get(self, key: Hashable) -> list[KeptBatch] | None:
        """Return the batches that are kept under a key."""
        return self._batches.get(key)

    def keep(self, key: Hashable, batches: list[KeptBatch]) -> None:
        """Keep the batches under a key, in place of those that were."""
        self._batches.pop(key, None)
        self._batches[key] = batches
        for other in self._batches:
            if sum(map(_pixels, self._batches.values())) > self._limit:
                self._batches[other] = [one._replace(images=None) for one in self._batches[other]]

    def too_large(self, batches: list[KeptBatch]) -> bool:
        """Return whether these batches alone have more pixels than are kept."""
        return _pixels(batches) > self._limit


def _pixels(batches: list[KeptBatch]) -> int:
    return sum(batch.images.nbytes for batch in batches if batch.images is not None)
