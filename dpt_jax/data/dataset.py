"""Datasets from any source, with their few-shot sample: drawn as published or listed by a file."""

import collections
import hashlib
import io
import json
import os
import pathlib
import pickle
import random
from collections.abc import Iterable, Sequence

from etils import epath
from ml_collections import ConfigDict

from dpt_jax.data.catalogue import CATALOGUE, EMBEDDED, descriptions_of
from dpt_jax.data.coop import read_coop
from dpt_jax.data.folder import read_folder
from dpt_jax.data.records import Dataset, Example, Files, by_label
from dpt_jax.data.tfds import read_tfds
from dpt_jax.errors import UserError
from dpt_jax.io import as_path, is_remote, listed_once, reading
from dpt_jax.logging import say_once

BUNDLED = pathlib.Path(__file__).parent.parent / "assets"
VALIDATION_SHOTS = 4
# Modules with Datum, the class of a sample's records, in CoOp's code and in code derived from it.
RECORD_MODULES = ("dassl.data.datasets.base_dataset", "dassl.data.datasets", "datasets.utils")


def load_dataset(config: ConfigDict, seed: int, whole: Dataset | None = None) -> Dataset:
    """Return the dataset that config.dataset names, with its few-shot sample.

    The seed draws the sample, unless dataset.sample names a file that lists it. `whole` is the
    whole dataset, if it is loaded already; all its validation images are used.
    """
    given, whole = whole, whole or read_splits(config)
    classes = len(whole.classnames)
    middle = (classes + 1) // 2
    halves = {"all": range(classes), "base": range(middle), "new": range(middle, classes)}
    labels = halves[config.classes]
    classnames = whole.classnames[labels.start : labels.stop]
    if config.descriptions:
        descriptions_of(config.descriptions, classnames)
    # The shots are drawn before the classes are split, so that both halves share one sample.
    train, val = _sample(config, whole, seed)
    train, val, test = (
        [Example(e.path, e.label - labels.start) for e in part if e.label in labels]
        for part in (train, given.val if given else val, whole.test)
    )
    digest = hashlib.sha256("\0".join(whole.classnames).encode(errors="surrogateescape"))
    for split in (whole.train, whole.val, whole.test):
        digest.update(digest_of_examples(split).encode())
    return Dataset(whole.read, classnames, train, val, test, digest.hexdigest(), whole.split)


def read_splits(config: ConfigDict) -> Dataset:
    """Return the whole dataset that config.dataset names, from its source."""
    if config.source != "folder" and config.name not in CATALOGUE:
        raise UserError(
            f"dataset.source={config.source} knows {', '.join(CATALOGUE)}, not {config.name!r}: "
            "name one of them in --config=METHOD:NAME, or use dataset.source=folder."
        )
    check_root(config)
    if config.source == "tfds":
        return read_tfds(config.name, config.root)
    root = as_path(config.root) if config.root else BUNDLED / config.name
    with listed_once(root / CATALOGUE[config.name].directory if config.source == "coop" else root):
        if config.source == "coop":
            return read_coop(config.name, root, skip_missing=config.on_error == "skip")
        return read_folder(root, config.split, config.test_fraction, config.on_error == "skip")


def check_root(config: ConfigDict) -> None:
    """Raise UserError if dataset.root is missing."""
    if config.name not in EMBEDDED and not config.root and config.source != "tfds":
        own = CATALOGUE[config.name].directory if config.source == "coop" else "your class folders"
        raise UserError(
            "dataset.root is not set: give --config.dataset.root=DIR, the folder that holds "
            f"{own}, see docs/datasets.md."
        )


def digest_of_examples(examples: Sequence[Example]) -> str:
    """Return the SHA-256 of a list of images: their paths and labels, in order."""
    text = "\n".join(f"{example.label} {example.path}" for example in examples)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def digest_of_files(dataset: Dataset) -> str:
    """Return the SHA-256 of the sizes of the test images, "" if they are not local files."""
    if not isinstance(dataset.read, Files) or is_remote(dataset.read.root):
        return ""
    files = [dataset.read.file(example.path) for example in dataset.test]
    sizes = [os.stat(file).st_size if file.exists() else None for file in files]
    return hashlib.sha256(repr(sizes).encode()).hexdigest()


def _sample(config: ConfigDict, whole: Dataset, seed: int) -> tuple[list[Example], list[Example]]:
    """Return the images to train on and to validate on, of all classes."""
    train, val = few_shot(whole.train, whole.val, config.shots, seed, config.natural)
    if config.sample and whole.train:  # a dataset that is only tested on has no sample
        return read_sample(as_path(config.sample), whole, config.shots), val
    if config.shots > (most := _most_per_class(whole.train)) > 0:
        say_once(
            f"dataset.shots is {config.shots}, but no class has more than {most} training images: "
            "all are used."
        )
    return train, val


def _most_per_class(examples: Iterable[Example]) -> int:
    return max(collections.Counter(example.label for example in examples).values(), default=0)


def few_shot(
    train: Sequence[Example], val: Sequence[Example], shots: int, seed: int, natural: bool = False
) -> tuple[list[Example], list[Example]]:
    """Return `shots` examples per class of train and min(shots, 4) of val, as CoOp draws them.

    One generator draws for train and then for val, class by class in the order in which the
    classes first appear. A class with fewer examples is taken whole. shots = -1 takes everything.
    If `natural`, one example per class of train is drawn, and the rest of shots · C at random.
    """
    if shots < 0:
        return list(train), list(val)
    generator = random.Random(seed)

    def draw(examples: Sequence[Example], shots: int) -> list[Example]:
        drawn = []
        for own in by_label(examples):
            drawn += generator.sample(own, shots) if len(own) >= shots else own
        return drawn

    drawn = draw(train, 1 if natural else shots)
    if natural:
        others = sorted(set(train) - {*drawn})
        drawn += generator.sample(others, min((shots - 1) * len(drawn), len(others)))
    return drawn, draw(val, min(shots, VALIDATION_SHOTS))


def read_sample(file: epath.Path, whole: Dataset, shots: int) -> list[Example]:
    """Return the training images that a file lists, in its order, repeated if it repeats them.

    The file is a run's train_files.txt, a .jsonl with one record per line, or a .pkl as CoOp's
    code writes it, of which nothing is run. Labels and number of shots must be as they are here.
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
        if found is None or label not in (None, label_of[found]):
            of = "" if label is None else f" of label {label}"
            raise UserError(
                f"dataset.sample: {file} lists {path!r}, which is not a training image{of} here."
            )
        sample.append(Example(found, label_of[found]))
    most = _most_per_class(sample)  # results are labelled by dataset.shots
    if shots >= 0 and not min(shots, _most_per_class(whole.train)) <= most <= shots:
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
    return [(str(record["_impath"]), int(record["_label"])) for record in records]


class _Record:
    """Stands for the published class of a record, with its attributes."""


class _Unpickler(pickle.Unpickler):
    """Unpickles records of the published class, and calls nothing that a file names."""

    def find_class(self, module: str, name: str) -> type[_Record]:
        if module not in RECORD_MODULES or name != "Datum":
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not run")
        return _Record
