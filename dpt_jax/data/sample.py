"""A sample of training images that a file lists, instead of one that is drawn."""

import collections
from collections.abc import Iterable
from typing import Any, NamedTuple

from etils import epath

from dpt_jax.data.listfiles import parse_json, read_bytes, read_text
from dpt_jax.data.records import Example, Splits
from dpt_jax.data.unpickle import UnsafePickleError, read_records
from dpt_jax.errors import UserError

# The fields of a record in CoOp's pickles, and of a line of the .jsonl made from them.
FIELDS = {"_impath", "_label", "_domain", "_classname"}


class Listed(NamedTuple):
    """An image as a file lists it; label is None where the file has none."""

    path: str
    label: int | None


def read_sample(file: epath.Path, whole: Splits, shots: int) -> list[Example]:
    """Return the training images that a file lists, in its order, repeated where it repeats them.

    The file is a run's train_files.txt, a .jsonl with one record a line, or a .pkl
    as CoOp's code writes it. shots: dataset.shots, which the sample must have, or -1.
    Raise UserError for a file that is none of these, an image that is not among the
    training images, a label that is not the dataset's and another number of shots.
    """
    readers = {".txt": _read_train_files, ".jsonl": _read_jsonl, ".pkl": _read_pickle}
    if file.suffix not in readers:
        raise UserError(
            f"dataset.sample: {file} should be a train_files.txt, a .jsonl or a .pkl of CoOp's "
            "layout."
        )
    listed = readers[file.suffix](file)
    if not listed:
        raise UserError(f"dataset.sample: {file} lists no images.")
    sample = _match(file, listed, whole)
    _check_shots(file, sample, whole, shots)
    return sample


def _read_train_files(file: epath.Path) -> list[Listed]:
    # As the run wrote them: names may hold any bytes, and begin or end with spaces.
    lines = read_text(file, errors="surrogateescape").split("\n")
    return [Listed(line.removesuffix("\r"), None) for line in lines if line.strip()]


def _read_jsonl(file: epath.Path) -> list[Listed]:
    return [
        _listed(parse_json(line, f"{file}, line {number},"), f"{file}, line {number},")
        for number, line in enumerate(read_text(file).split("\n"), 1)
        if line.strip()
    ]


def _read_pickle(file: epath.Path) -> list[Listed]:
    try:
        content = read_records(read_bytes(file))
    except UnsafePickleError as reason:
        raise UserError(f"dataset.sample: {file} is not a pickled sample ({reason}).") from reason
    if type(content) is not dict or not {"train"} <= set(content) <= {"train", "val"}:
        raise UserError(f"dataset.sample: {file} should hold the lists 'train' and 'val'.")
    if type(content["train"]) is not list:
        raise UserError(f"dataset.sample: 'train' in {file} is not a list.")
    return [
        _listed(record, f"{file}, image {number},")
        for number, record in enumerate(content["train"], 1)
    ]


def _listed(record: Any, where: str) -> Listed:
    if (
        not isinstance(record, dict)
        or not {"_impath", "_label"} <= set(record) <= FIELDS
        or not isinstance(record["_impath"], str)
        or type(record["_label"]) is not int
    ):
        raise UserError(
            f"dataset.sample: {where} is not a record of _impath, _label, _domain and _classname."
        )
    return Listed(record["_impath"], record["_label"])


def _match(file: epath.Path, listed: Iterable[Listed], whole: Splits) -> list[Example]:
    """Return the dataset's own examples of what the file lists."""
    label_of = {example.path: example.label for example in whole.train}
    others = {example.path for example in (*whole.val, *whole.test)}
    sample = []
    for path, label in listed:
        # Paths may begin with another machine's folder: /their/data/imagenet/images/train/…
        parts = path.replace("\\", "/").split("/") if path not in label_of else [path]
        ends = ["/".join(parts[i:]) for i in range(len(parts))]
        found = next((end for end in ends if end in label_of), None)
        if found is None:
            elsewhere = any(end in others for end in ends)
            raise UserError(
                f"dataset.sample: {file} lists {path!r}, which is "
                + ("an image to test on." if elsewhere else "not in the dataset.")
            )
        if label not in (None, label_of[found]):
            raise UserError(
                f"dataset.sample: {file} gives {path!r} the label {label}, but in the dataset it "
                f"has {label_of[found]}, {whole.classnames[label_of[found]]!r}."
            )
        sample.append(Example(found, label_of[found]))
    return sample


def _check_shots(file: epath.Path, sample: list[Example], whole: Splits, shots: int) -> None:
    """Raise UserError where dataset.shots, which results are filed under, is not the sample's."""
    most = max(collections.Counter(example.label for example in sample).values())
    there = max(collections.Counter(example.label for example in whole.train).values())
    if shots >= 0 and not min(shots, there) <= most <= shots:
        raise UserError(
            f"dataset.sample: {file} has up to {most} images a class, but dataset.shots is "
            f"{shots}: give --config.dataset.shots={most}."
        )
