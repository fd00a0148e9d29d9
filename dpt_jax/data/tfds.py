"""The published datasets from tensorflow-datasets, read by position without TensorFlow.

TFDS prepares them on first use, which needs TensorFlow. Its splits are not the published ones:
results compare with each other, not with the papers.
"""

import contextlib
import dataclasses
import io
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dpt_jax.data.catalogue import imagenet_classnames
from dpt_jax.data.records import Dataset, Example, Source, by_label, read_image
from dpt_jax.errors import UserError
from dpt_jax.io import as_path, is_remote, local_copy, reading, write_whole
from dpt_jax.logging import Progress, say

# From TFDS's labels to {label: published class name}, in the published order, without the classes
# that are left out.
ClassNames = Callable[[Sequence[str]], dict[str, str]]


def _renamed(rename: Callable[[str], str] = str) -> ClassNames:
    return lambda labels: {label: rename(label).replace("_", " ") for label in labels}


def _names_of_wordnet_ids(labels: Sequence[str]) -> dict[str, str]:
    return dict(zip(labels, imagenet_classnames(), strict=True))


def _caltech101_names(labels: Sequence[str]) -> dict[str, str]:
    # TFDS's names are all lower case, but these begin with a capital, which sorts first.
    first = {"faces": "face", "leopards": "leopard", "motorbikes": "motorbike"}
    others = sorted({*labels} - {*first, "background_google", "faces_easy"})
    return first | _renamed()(others) | {"airplanes": "airplane"}


EUROSAT_NAMES = {
    "AnnualCrop": "Annual Crop Land",
    "Forest": "Forest",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "River": "River",
    "SeaLake": "Sea or Lake",
}


def _sun397_name(path: str) -> str:
    """Return "outdoor church" for "c/church/outdoor"."""
    return " ".join(reversed(path.strip("/").split("/")[1:]))


class Use(NamedTuple):
    """How a dataset of tensorflow-datasets is used: its splits for each purpose, joined by "+".

    Without `test`, train is split by the rule that made the published splits.
    """

    builder: str  # name and config
    classnames: ClassNames = _renamed()
    train: str = "train"  # "" for none
    val: str = ""
    test: str = "test"  # "" to split train at random


USES = {
    "imagenet": Use("imagenet2012", _names_of_wordnet_ids, test="validation"),
    "caltech101": Use("caltech101", _caltech101_names),
    "oxford_pets": Use("oxford_iiit_pet", _renamed(str.lower)),
    # Each split has ten images per class, and sixteen shots need both. One of the names
    # ends in a question mark.
    "oxford_flowers": Use(
        "oxford_flowers102", _renamed(lambda label: label.rstrip("?")), "train+validation"
    ),
    "food101": Use("food101", lambda labels: _renamed()(sorted(labels)), test="validation"),
    # The partition that the published split is made from.
    "sun397": Use("sun397/standard-part1-120k", _renamed(_sun397_name)),
    "dtd": Use("dtd", val="validation"),
    "eurosat": Use("eurosat/rgb", _renamed(EUROSAT_NAMES.__getitem__), test=""),
    "imagenetv2": Use("imagenet_v2/matched-frequency", _names_of_wordnet_ids, train=""),
    **{
        name: Use(name, _names_of_wordnet_ids, train="")
        for name in ("imagenet_sketch", "imagenet_a", "imagenet_r")
    },
}


@dataclasses.dataclass(frozen=True)
class Records(Source):
    """Reads images of a prepared dataset by the path SPLIT/NUMBER."""

    directory: str  # of the prepared dataset
    sources: Mapping[str, Sequence[bytes]]  # the serialised records of each split
    features: Any  # parses the encoded image from a record

    def key(self, path: str) -> Hashable:
        return self.directory, path

    def read(self, path: str) -> Image.Image:
        split, _, number = path.partition("/")
        record = self.features.deserialize_example_np(self.sources[split][int(number)])
        name = f"{self.directory}, image {path},"
        return read_image(io.BytesIO(record["image"]), name, upright=False)


def read_tfds(name: str, root: str) -> Dataset:
    """Return a dataset of the catalogue from TFDS's data directory, "" for TFDS's default."""
    if name not in USES:
        raise UserError(f"dataset.source=tfds has no {name}: use --config.dataset.source=coop.")
    use = USES[name]
    import tensorflow_datasets as tfds

    splits = [split for split in (use.train, use.val, use.test) if split]
    folder = _on_this_disk(use.builder, root, splits)
    with reading(root or "~/tensorflow_datasets", f"the data directory of {use.builder}"):
        builder = tfds.builder(use.builder, data_dir=folder or None)
        if not builder.is_prepared():
            _prepare(use.builder, folder)
            builder = tfds.builder(use.builder, data_dir=folder or None)
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    with reading(builder.data_dir, f"ArrayRecord data with the splits {', '.join(splits)}"):
        sources = {x: builder.as_data_source(x, deserialize_method=raw) for x in splits}
    labels: dict[str, list[int]] = {"": []}
    labels |= {split: _labels(builder, split, sources[split]).tolist() for split in splits}

    label_names = builder.info.features["label"].names
    # ImageNet-A and -R have images of some labels only.
    present = {label_names[label] for own in labels.values() for label in own}
    named = use.classnames(label_names).items()
    classname_of = {label: classname for label, classname in named if label in present}
    order = {label_names.index(label): i for i, label in enumerate(classname_of)}
    train, val, test = (
        [Example(f"{split}/{i}", order[x]) for i, x in enumerate(labels[split]) if x in order]
        for split in (use.train, use.val, use.test)
    )
    if not use.test:
        train, val, test = published_split(train)
    # Read as Text, images stay encoded, so that PIL decodes them.
    parse = tfds.features.FeaturesDict({"image": tfds.features.Text()})
    read = Records(str(builder.data_dir), sources, parse)
    return Dataset(read, tuple(classname_of.values()), train, val, test)


def published_split(examples: Sequence[Example]) -> list[list[Example]]:
    """Return half of each class to train on, a fifth to validate, the rest to test.

    CoOp's splits were made by this rule, with this seed.
    """
    generator = random.Random(1)
    train, val, test = [], [], []
    for own in by_label(examples):
        generator.shuffle(own)
        half, fifth = round(len(own) * 0.5), round(len(own) * 0.2)
        train += own[:half]
        val += own[half : half + fifth]
        test += own[half + fifth :]
    return [train, val, test]


def _prepare(name: str, folder: str) -> None:
    """Download and prepare a dataset in a process of its own, or TensorFlow would take the GPU."""
    where = folder or "~/tensorflow_datasets"
    say(f"tensorflow-datasets downloads and prepares {name} in {where}.")
    program = (
        f"import tensorflow_datasets as tfds; tfds.builder({name!r}, data_dir={folder or None!r})"
        ".download_and_prepare(file_format='array_record')"
    )
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    if subprocess.run([sys.executable, "-c", program], env=environment).returncode:
        raise UserError(
            f"tensorflow-datasets cannot prepare {name} in {where} (see above): it needs the "
            "network, `pip install tensorflow` and, for some datasets, opencv-python or archives "
            "that you download to downloads/manual there."
        )


def _on_this_disk(name: str, root: str, splits: Sequence[str]) -> str:
    """Return the data directory, or a copy from a bucket: array_record only reads from disks."""
    if not root or not is_remote(root):
        return str(as_path(root)) if root else ""
    folder = name.partition(":")[0]
    parts = {part for split in splits for part in split.split("+")}

    def wanted(path: str) -> bool:
        record = re.search(r"-(\w+)\.\w+-\d+-of-\d+$", path)
        return path.startswith(f"{folder}/") and (record is None or record[1] in parts)

    if not (as_path(root) / folder).is_dir():
        raise UserError(
            f"{root} has no {folder}: prepare it on a disk (without dataset.root) and copy it with "
            f"`gcloud storage cp -r ~/tensorflow_datasets/{folder} {root}`."
        )
    return str(local_copy(as_path(root), wanted, say))


def _labels(builder: Any, split: str, records: Sequence[bytes]) -> np.ndarray:
    """Return TFDS's label of every record, (N,) int32.

    Labels are inside the records, so this reads all of the data once. Then they are cached beside
    the data, if that folder is writable.
    """
    import tensorflow_datasets as tfds

    file = as_path(builder.data_dir) / f"labels-{split}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):
        cached = np.load(io.BytesIO(file.read_bytes()), allow_pickle=False)
        if cached.shape == (len(records),):
            return cached
    only_label = tfds.features.FeaturesDict({"label": builder.info.features["label"]})
    labels = np.zeros(len(records), np.int32)
    with Progress(f"labels of {builder.name}, {split}", len(records)) as progress:
        for i in progress.track(range(len(records))):
            labels[i] = only_label.deserialize_example_np(records[i])["label"]
    buffer = io.BytesIO()
    np.save(buffer, labels)
    with contextlib.suppress(UserError):
        write_whole(file, buffer.getvalue())
    return labels
