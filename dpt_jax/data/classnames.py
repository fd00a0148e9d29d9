"""From the names that datasets come with to the class names of the published work.

Zero-shot accuracy is off by points with others. The order of the classes is the
published one too, which decides what is a base and what a new class.
"""

import importlib.resources
import re
from collections.abc import Sequence

CALTECH101_IGNORED = ("BACKGROUND_Google", "Faces_easy")
CALTECH101_RENAMED = {
    "airplanes": "airplane",
    "Faces": "face",
    "Leopards": "leopard",
    "Motorbikes": "motorbike",
}

# TFDS has all names in lower case, which hides that the published order puts upper-case letters first.
CALTECH101_FOLDERS = {name.lower(): name for name in (*CALTECH101_IGNORED, *CALTECH101_RENAMED)}

EUROSAT = {
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


def cars(name: str) -> str:
    """The year first: "Audi TTS Coupe 2012" -> "2012 Audi TTS Coupe"."""
    model, _, year = name.rpartition(" ")
    return f"{year} {model}" if model else year


def sun397(path: str) -> str:
    """Without the first letter's folder, reversed: "c/church/outdoor" -> "outdoor church"."""
    return " ".join(reversed(path.strip("/").split("/")[1:]))


def ucf101(action: str) -> str:
    """A word for each capital: "ApplyEyeMakeup" -> "Apply_Eye_Makeup"."""
    return "_".join(re.findall("[A-Z][^A-Z]*", action))


def imagenet() -> list[str]:
    """The 1,000 names of ImageNet's classes, in the order of their WordNet ids."""
    file = importlib.resources.files("dpt_jax") / "assets" / "imagenet_classnames.txt"
    return file.read_text(encoding="utf-8").splitlines()


def from_tfds(dataset: str, labels: Sequence[str]) -> dict[str, str]:
    """{label of TFDS: published class name} in the published order, without the classes that are left out."""
    if dataset.startswith("imagenet"):
        return dict(zip(labels, imagenet(), strict=True))
    if dataset == "caltech101":
        folders = {label: CALTECH101_FOLDERS.get(label, label) for label in labels}
        kept = sorted(
            (label for label in labels if folders[label] not in CALTECH101_IGNORED),
            key=folders.__getitem__,
        )
        return {
            label: CALTECH101_RENAMED.get(folders[label], label).replace("_", " ") for label in kept
        }
    if dataset == "food101":
        labels = sorted(labels)
    name = {
        "oxford_pets": str.lower,
        "stanford_cars": cars,
        # One of TFDS's names, "pink-yellow dahlia?", is in doubt.
        "oxford_flowers": lambda label: label.rstrip("?"),
        "sun397": sun397,
        "eurosat": lambda label: EUROSAT.get(label, label),
        "ucf101": ucf101,
    }.get(dataset, str)
    return {label: name(label).replace("_", " ") for label in labels}
