"""Datasets whose images lie in class folders."""

import functools
from collections.abc import Mapping, Sequence

from etils import epath

from dpt_jax.data.benchmark import (
    Benchmark,
    Lists,
    TfdsUse,
    as_they_are,
    class_folders,
    folder_names,
    split_all,
)

CALTECH101_IGNORED = ("BACKGROUND_Google", "Faces_easy")
CALTECH101_RENAMED = {
    "airplanes": "airplane",
    "Faces": "face",
    "Leopards": "leopard",
    "Motorbikes": "motorbike",
}
# TFDS's names are all lower case, which hides that the published order puts upper case first.
CALTECH101_FOLDERS = {name.lower(): name for name in (*CALTECH101_IGNORED, *CALTECH101_RENAMED)}

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


def read_folders(
    directory: epath.Path,
    images: epath.Path,
    renamed: Mapping[str, str] = {},
    ignored: Sequence[str] = (),
) -> Lists:
    """Return the lists that the published rule makes, with the folders' names or other ones."""
    folders = [name for name in folder_names(images) if name not in ignored]
    return split_all(class_folders(images, folders, [renamed.get(name, name) for name in folders]))


def caltech101_names(labels: Sequence[str]) -> dict[str, str]:
    """Return the class names of TFDS's labels, in the order of the folders."""
    folders = {label: CALTECH101_FOLDERS.get(label, label) for label in labels}
    used = [label for label in labels if folders[label] not in CALTECH101_IGNORED]
    return {
        label: CALTECH101_RENAMED.get(folders[label], label).replace("_", " ")
        for label in sorted(used, key=folders.__getitem__)
    }


CALTECH101 = Benchmark(
    name="caltech101",
    template="a photo of a {}.",
    directory="caltech-101",
    images="101_ObjectCategories",
    read_raw=functools.partial(
        read_folders, renamed=CALTECH101_RENAMED, ignored=CALTECH101_IGNORED
    ),
    split="split_zhou_Caltech101.json",
    tfds=TfdsUse("caltech101", train="train", test="test", classnames=caltech101_names),
)

FOOD101 = Benchmark(
    name="food101",
    template="a photo of {}, a type of food.",
    directory="food-101",
    images="images",
    read_raw=read_folders,
    split="split_zhou_Food101.json",
    tfds=TfdsUse(
        "food101",
        train="train",
        test="validation",
        classnames=lambda labels: as_they_are(sorted(labels)),
    ),
)

DTD = Benchmark(
    name="dtd",
    template="{} texture.",
    directory="dtd",
    images="images",
    read_raw=read_folders,
    split="split_zhou_DescribableTextures.json",
    tfds=TfdsUse("dtd", train="train", val="validation", test="test"),
)

EUROSAT = Benchmark(
    name="eurosat",
    template="a centered satellite photo of {}.",
    directory="eurosat",
    images="2750",
    read_raw=functools.partial(read_folders, renamed=EUROSAT_NAMES),
    split="split_zhou_EuroSAT.json",
    tfds=TfdsUse(
        "eurosat/rgb",
        train="train",
        classnames=lambda labels: {label: EUROSAT_NAMES.get(label, label) for label in labels},
    ),
)
