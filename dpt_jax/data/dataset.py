"""Datasets as lists of examples and labels, from any source."""

import collections
import hashlib
import os
import pathlib
from collections.abc import Sequence

from ml_collections import ConfigDict

from dpt_jax.data import descriptions, sampling
from dpt_jax.data.catalogue import CATALOGUE, EMBEDDED
from dpt_jax.data.coop import read_coop
from dpt_jax.data.folder import read_folder
from dpt_jax.data.records import Dataset, Example, Files
from dpt_jax.data.tfds import read_tfds
from dpt_jax.errors import UserError
from dpt_jax.io import as_path, is_remote, listed_once
from dpt_jax.logging import say_once

BUNDLED = pathlib.Path(__file__).parent.parent / "assets"


def load_dataset(config: ConfigDict, seed: int, whole: Dataset | None = None) -> Dataset:
    """Return the dataset that config.dataset names, with its few-shot sample.

    Args:
        config: config.dataset, validated.
        seed: draws the sample, unless dataset.sample names a file that lists it.
        whole: the whole dataset, if it is loaded already. All its validation images are used.

    Raises:
        UserError: a folder, file, split or class is missing or damaged.
    """
    given, whole = whole, whole or read_splits(config)
    # The shots are drawn before the classes are split, so that both halves share one sample.
    train, val = _sample(config, whole, seed)
    test = whole.test
    if given:
        val = given.val
    classnames = whole.classnames
    if config.classes != "all":
        labels = sampling.half_of_classes(len(classnames), config.classes)
        if not labels:
            raise UserError(
                f"{config.name} has one class, so there is no {config.classes!r} half of its "
                "classes."
            )
        classnames = tuple(classnames[label] for label in labels)
        train, val, test = (
            [Example(e.path, e.label - labels[0]) for e in part if e.label in labels]
            for part in (train, val, test)
        )
    if config.descriptions:
        descriptions.texts_of(config.descriptions, classnames)
    digest = hashlib.sha256("\0".join(whole.classnames).encode(errors="surrogateescape"))
    for split in (whole.train, whole.val, whole.test):
        digest.update(digest_of_examples(split).encode())
    return Dataset(whole.read, classnames, train, val, test, digest.hexdigest(), whole.split)


def digest_of_examples(examples: Sequence[Example]) -> str:
    """Return the SHA-256 of a list of images: their paths and labels, in order."""
    text = "\n".join(f"{example.label} {example.path}" for example in examples)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def digest_of_files(dataset: Dataset) -> str:
    """Return the SHA-256 of the sizes of the test images, "" if they are not local files."""
    if not isinstance(dataset.read, Files) or is_remote(dataset.read.root):
        return ""
    found = hashlib.sha256()
    for example in dataset.test:
        file = dataset.read.file(example.path)
        found.update(f"{os.stat(file).st_size if file.exists() else None} ".encode())
    return found.hexdigest()


def _sample(config: ConfigDict, whole: Dataset, seed: int) -> tuple[list[Example], list[Example]]:
    """Return the images to train on and to validate on, of all classes."""
    train, val = sampling.few_shot(whole.train, whole.val, config.shots, seed, config.natural)
    if config.sample and whole.train:  # a dataset that is only tested on has no sample
        return sampling.read_sample(as_path(config.sample), whole, config.shots), val
    most = max(collections.Counter(example.label for example in whole.train).values(), default=0)
    if config.shots > most > 0:
        say_once(
            f"dataset.shots is {config.shots}, but no class has more than {most} training images: "
            "all are used."
        )
    return train, val


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
        holds = (
            f"{CATALOGUE[config.name].directory}/, laid out as CoOp's DATASETS.md says"
            if config.source == "coop"
            else "a folder for each class"
        )
        raise UserError(
            "dataset.root is not set: give --config.dataset.root=DIR, the folder that holds "
            f"{holds}."
        )
