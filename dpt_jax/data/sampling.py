"""Few-shot samples, drawn as for published results or listed by a file; halves of the classes."""

import collections
import io
import json
import pickle
import random
from collections.abc import Iterable, Sequence

from etils import epath

from dpt_jax.data.records import Dataset, Example
from dpt_jax.errors import UserError
from dpt_jax.io import reading

VALIDATION_SHOTS = 4
SPLIT_SEED = 1  # the same for all seeds, so that they have the same test images
# Modules with the class of the records, in CoOp's code and in code derived from it.
RECORD_CLASSES = {
    ("dassl.data.datasets.base_dataset", "Datum"),
    ("dassl.data.datasets", "Datum"),
    ("datasets.utils", "Datum"),
}


def few_shot(
    train: Sequence[Example],
    val: Sequence[Example],
    shots: int,
    seed: int,
    natural: bool = False,
) -> tuple[list[Example], list[Example]]:
    """Return `shots` examples per class of train and min(shots, 4) of val, as CoOp draws them.

    One generator draws for train and then for val, class by class in the order in which the
    classes first appear. A class with fewer examples is taken whole. shots = -1 takes everything.

    natural: whether to draw one example per class of train, the rest of shots · C at random.
    """
    if shots < 0:
        return list(train), list(val)
    generator = random.Random(seed)
    drawn = _draw(train, 1 if natural else shots, generator)
    if natural:
        others = sorted(set(train) - {*drawn})
        drawn += generator.sample(others, min((shots - 1) * len(drawn), len(others)))
    return drawn, _draw(val, min(shots, VALIDATION_SHOTS), generator)


def _draw(examples: Sequence[Example], shots: int, generator: random.Random) -> list[Example]:
    drawn = []
    for own in _by_label(examples):
        drawn += generator.sample(own, shots) if len(own) >= shots else own
    return drawn


def _by_label(examples: Sequence[Example]) -> Iterable[list[Example]]:
    groups: dict[int, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.label, []).append(example)
    return groups.values()


def published_split(
    examples: Sequence[Example],
) -> tuple[list[Example], list[Example], list[Example]]:
    """Return half of each class to train on, a fifth to validate, the rest to test.

    CoOp's splits were made by this rule. The seed is fixed.
    """
    generator = random.Random(SPLIT_SEED)
    train, val, test = [], [], []
    for own in _by_label(examples):
        generator.shuffle(own)
        half, fifth = round(len(own) * 0.5), round(len(own) * 0.2)
        train += own[:half]
        val += own[half : half + fifth]
        test += own[half + fifth :]
    return train, val, test


def half_of_classes(classes: int, half: str) -> range:
    """Return the labels of "base", the first ceil(C/2), or of "new", the rest."""
    middle = (classes + 1) // 2
    return range(middle) if half == "base" else range(middle, classes)


def read_sample(file: epath.Path, whole: Dataset, shots: int) -> list[Example]:
    """Return the training images that a file lists, in its order, repeated if it repeats them.

    Args:
        file: a run's train_files.txt, a .jsonl with one record per line, or a .pkl as CoOp's code
            writes it. Nothing in a .pkl is run.
        whole: the dataset of the images.
        shots: dataset.shots, which the sample must have, or -1.

    Raises:
        UserError: the file is none of these, lists an image that is not a training image of the
            dataset or has another label, or has another number of shots.
    """
    with reading(file, "a train_files.txt, a .jsonl or a .pkl of CoOp's layout (dataset.sample)"):
        listed = _listed(file)
        if not listed:
            raise ValueError("it lists no images")
    label_of = {example.path: example.label for example in whole.train}
    sample = []
    for path, label in listed:
        # Paths may begin with another machine's folder: /their/data/imagenet/images/train/…
        parts = path.replace("\\", "/").split("/") if path not in label_of else [path]
        ends = ("/".join(parts[i:]) for i in range(len(parts)))
        found = next((end for end in ends if end in label_of), None)
        if found is None:
            raise UserError(
                f"dataset.sample: {file} lists {path!r}, which is not a training image of the "
                "dataset."
            )
        if label not in (None, label_of[found]):
            raise UserError(
                f"dataset.sample: {file} gives {path!r} the label {label}, but in the dataset it "
                f"has {label_of[found]}, {whole.classnames[label_of[found]]!r}."
            )
        sample.append(Example(found, label_of[found]))
    # Results are labelled by dataset.shots.
    most, there = (
        max(collections.Counter(example.label for example in examples).values())
        for examples in (sample, whole.train)
    )
    if shots >= 0 and not min(shots, there) <= most <= shots:
        raise UserError(
            f"dataset.sample: {file} has up to {most} images per class, but dataset.shots is "
            f"{shots}: give --config.dataset.shots={most}."
        )
    return sample


def _listed(file: epath.Path) -> list[tuple[str, int | None]]:
    """Return path and label of the images that a file lists, without label in a train_files.txt."""
    content = file.read_bytes()
    if file.suffix == ".txt":
        # As the run wrote them: names may hold any bytes, and begin or end with spaces.
        lines = content.decode(errors="surrogateescape").split("\n")
        return [(line.removesuffix("\r"), None) for line in lines if line.strip()]
    if file.suffix == ".jsonl":
        lines = content.decode("utf-8-sig").split("\n")
        records = [json.loads(line) for line in lines if line.strip()]
    else:
        records = [vars(record) for record in _Unpickler(io.BytesIO(content)).load()["train"]]
    for record in records:
        if not isinstance(record["_impath"], str) or type(record["_label"]) is not int:
            raise TypeError(f"{record} should have a path as _impath and a number as _label")
    return [(record["_impath"], record["_label"]) for record in records]


class _Record:
    """Stands for the published class of a record, with its attributes."""


class _Unpickler(pickle.Unpickler):
    """Unpickles records of the published classes, and calls nothing that a file names."""

    def find_class(self, module: str, name: str) -> type[_Record]:
        if (module, name) not in RECORD_CLASSES:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not run")
        return _Record
