"""Few-shot samples and halves of the classes, as published results use them."""

import random
from collections.abc import Sequence

from dpt_jax.data.records import Example

VALIDATION_SHOTS = 4


def few_shot(
    train: Sequence[Example], val: Sequence[Example], shots: int, seed: int
) -> tuple[list[Example], list[Example]]:
    """Return `shots` examples a class of train and min(shots, 4) of val, as CoOp draws them.

    One generator draws for train and then for val, class by class in the order in which the
    classes first appear. A class with fewer examples is taken whole. shots = -1 takes everything.
    """
    if shots < 0:
        return list(train), list(val)
    generator = random.Random(seed)
    return _draw(train, shots, generator), _draw(val, min(shots, VALIDATION_SHOTS), generator)


def _draw(examples: Sequence[Example], shots: int, generator: random.Random) -> list[Example]:
    by_label: dict[int, list[Example]] = {}
    for example in examples:
        by_label.setdefault(example.label, []).append(example)
    drawn = []
    for items in by_label.values():
        drawn += generator.sample(items, shots) if len(items) >= shots else items
    return drawn


def half_of_classes(classes: int, half: str) -> range:
    """Return the labels of "base", the first ceil(C/2), or of "new", the rest."""
    middle = (classes + 1) // 2
    return range(middle) if half == "base" else range(middle, classes)
