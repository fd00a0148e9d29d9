"""A dataset as lists of examples and labels, whatever it came from."""

import collections
import hashlib
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from dpt_jax.data import sampling
from dpt_jax.data.catalogue import CATALOGUE, EMBEDDED
from dpt_jax.data.coop import read_coop
from dpt_jax.data.folder import read_folder
from dpt_jax.data.records import Example, Reader, Splits
from dpt_jax.data.tfds import read_tfds
from dpt_jax.errors import UserError
from dpt_jax.runtime.console import say

BUNDLED = pathlib.Path(__file__).parent.parent / "assets"


class Dataset(NamedTuple):
    """Images of C classes: `train` is the few-shot sample, `test` the whole test split."""

    read: Reader
    classnames: tuple[str, ...]
    train: list[Example]
    test: list[Example]
    digest: str = ""  # of all classes and all images, whichever are taken of them


def load_dataset(config: ConfigDict, seed: int) -> Dataset:
    """The dataset that config.dataset names, its few-shot sample drawn with `seed`.

    config: has passed config.check. Raises UserError where a folder, file, split
    or class is not as it should be.
    """
    whole = read_splits(config)
    # The shots are drawn before the classes are split, so that both halves are of one sample.
    train, _ = sampling.few_shot(whole.train, whole.val, config.shots, seed)
    most = max(collections.Counter(example.label for example in whole.train).values(), default=0)
    if config.shots > most > 0:
        say(
            f"dataset.shots is {config.shots}, but no class has more than {most} training images: all are taken."
        )
    if config.classes == "all":
        return Dataset(whole.read, whole.classnames, train, whole.test, digest_of(whole))
    labels = list(sampling.half_of_classes(len(whole.classnames), config.classes))
    if not labels:
        raise UserError(
            f"{config.name} has one class, so there is no {config.classes!r} half of its classes."
        )
    first = labels[0]
    return Dataset(
        read=whole.read,
        classnames=tuple(whole.classnames[label] for label in labels),
        train=[Example(e.path, e.label - first) for e in train if e.label in labels],
        test=[Example(e.path, e.label - first) for e in whole.test if e.label in labels],
        digest=digest_of(whole),
    )


def digest_of(whole: Splits) -> str:
    """Return a digest that tells one dataset from another of the same name."""
    found = hashlib.sha256("\0".join(whole.classnames).encode(errors="surrogateescape"))
    for split in (whole.train, whole.val, whole.test):
        found.update(digest_of_examples(split).encode())
    return found.hexdigest()


def digest_of_examples(examples: Sequence[Example]) -> str:
    """Return the SHA-256 of a list of images: their paths and labels, in order."""
    text = "\n".join(f"{example.label} {example.path}" for example in examples)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def read_splits(config: ConfigDict) -> Splits:
    """The whole dataset that config.dataset names, from its source."""
    if config.source != "folder" and config.name not in CATALOGUE:
        raise UserError(
            f"dataset.source={config.source} knows {', '.join(CATALOGUE)}, not {config.name!r}: name one of them in "
            "--config=configs/METHOD.py:NAME, or use dataset.source=folder."
        )
    root = pathlib.Path(config.root).expanduser()
    if config.source == "tfds":
        return read_tfds(config.name, str(root) if config.root else "")
    if config.source == "coop":
        if not config.root:
            raise UserError(
                f"dataset.root is not set: give the folder that holds {CATALOGUE[config.name].directory}/, laid out "
                "as CoOp's DATASETS.md says, --config.dataset.root=DIR."
            )
        return read_coop(config.name, root, skip_missing=config.on_error == "skip")
    if config.name not in EMBEDDED and not config.root:
        raise UserError(
            "dataset.root is not set: give the folder that holds train/ and test/, --config.dataset.root=DIR."
        )
    return read_folder(root if config.root else BUNDLED / config.name)
