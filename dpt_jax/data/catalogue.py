"""The datasets that have a name: the published ones, and those bundled with the package."""

import importlib.resources
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from dpt_jax.errors import UserError

Setting = str | int | float | bool


def imagenet_classnames() -> list[str]:
    """Return the 1,000 names of ImageNet's classes, in the order of their WordNet ids."""
    file = importlib.resources.files("dpt_jax") / "assets" / "imagenet_classnames.txt"
    return file.read_text(encoding="utf-8").splitlines()


# ---- From TFDS's labels to {label: published class name}, in the published order.


def _spaced(labels: Sequence[str]) -> dict[str, str]:
    return {label: label.replace("_", " ") for label in labels}


def _renamed(rename: Callable[[str], str]) -> Callable[[Sequence[str]], dict[str, str]]:
    return lambda labels: {label: rename(label).replace("_", " ") for label in labels}


def _names_of_wordnet_ids(labels: Sequence[str]) -> dict[str, str]:
    return dict(zip(labels, imagenet_classnames(), strict=True))


CALTECH101_IGNORED = ("BACKGROUND_Google", "Faces_easy")
CALTECH101_RENAMED = {
    "airplanes": "airplane",
    "Faces": "face",
    "Leopards": "leopard",
    "Motorbikes": "motorbike",
}
# TFDS's names are all lower case, which hides that the published order puts upper case first.
CALTECH101_FOLDERS = {name.lower(): name for name in (*CALTECH101_IGNORED, *CALTECH101_RENAMED)}


def _caltech101_names(labels: Sequence[str]) -> dict[str, str]:
    folders = {label: CALTECH101_FOLDERS.get(label, label) for label in labels}
    used = [label for label in labels if folders[label] not in CALTECH101_IGNORED]
    return {
        label: CALTECH101_RENAMED.get(folders[label], label).replace("_", " ")
        for label in sorted(used, key=folders.__getitem__)
    }


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
    """Return a class's path reversed, without the folder of its letter.

    "c/church/outdoor" becomes "outdoor church".
    """
    return " ".join(reversed(path.strip("/").split("/")[1:]))


class TfdsUse(NamedTuple):
    """How a dataset of tensorflow-datasets is used.

    Attributes:
        builder: its name and config.
        classnames: from TFDS's labels to {label: published class name} in the published order,
            without the classes that are left out.
        train, val, test: which of its splits serve as what, "+" joining several and "" for none.
            Without test, train is split by the rule that made the published splits.
    """

    builder: str
    classnames: Callable[[Sequence[str]], dict[str, str]] = _spaced
    train: str = "train"
    val: str = ""
    test: str = "test"


class Benchmark(NamedTuple):
    """The description of one published dataset.

    Attributes:
        template: the hand-written text of a class, for zero-shot CLIP and the frozen texts.
        directory: where CoOp's DATASETS.md puts it below the common root.
        images: the folder that image paths are relative to, below the directory.
        split: the file of its published split, or "" if the data come with one.
        tfds: its use of TFDS, or None if TFDS does not have it.
        differs: settings by key in which the published scripts differ from the defaults.
    """

    template: str
    directory: str
    images: str
    split: str = ""
    tfds: TfdsUse | None = None
    differs: Mapping[str, Setting] = {}

    @property
    def settings(self) -> dict[str, Setting]:
        """The settings by key that are not the defaults."""
        return {"dataset.source": "coop", "dataset.template": self.template, **self.differs}


# Averages are over these, in the order of the paper's tables.
_PAPER = {
    "imagenet": Benchmark(
        "a photo of a {}.",
        "imagenet",
        "images",
        tfds=TfdsUse("imagenet2012", _names_of_wordnet_ids, test="validation"),
        differs={"train.warmup_epochs": 1},
    ),
    "caltech101": Benchmark(
        "a photo of a {}.",
        "caltech-101",
        "101_ObjectCategories",
        "split_zhou_Caltech101.json",
        TfdsUse("caltech101", _caltech101_names),
    ),
    "oxford_pets": Benchmark(
        "a photo of a {}, a type of pet.",
        "oxford_pets",
        "images",
        "split_zhou_OxfordPets.json",
        TfdsUse("oxford_iiit_pet", _renamed(str.lower)),
    ),
    "stanford_cars": Benchmark(
        "a photo of a {}.",
        "stanford_cars",
        "",
        "split_zhou_StanfordCars.json",
    ),
    "oxford_flowers": Benchmark(
        "a photo of a {}, a type of flower.",
        "oxford_flowers",
        "jpg",
        "split_zhou_OxfordFlowers.json",
        TfdsUse(
            "oxford_flowers102",
            # One of TFDS's names, "pink-yellow dahlia?", is in doubt.
            _renamed(lambda label: label.rstrip("?")),
            train="train+validation",  # ten images a class each; sixteen shots need both
        ),
    ),
    "food101": Benchmark(
        "a photo of {}, a type of food.",
        "food-101",
        "images",
        "split_zhou_Food101.json",
        TfdsUse("food101", lambda labels: _spaced(sorted(labels)), test="validation"),
    ),
    "fgvc_aircraft": Benchmark("a photo of a {}, a type of aircraft.", "fgvc_aircraft", "images"),
    "sun397": Benchmark(
        "a photo of a {}.",
        "sun397",
        "SUN397",
        "split_zhou_SUN397.json",
        # The partition that the published split is made from.
        TfdsUse("sun397/standard-part1-120k", _renamed(_sun397_name)),
    ),
    "dtd": Benchmark(
        "{} texture.",
        "dtd",
        "images",
        "split_zhou_DescribableTextures.json",
        TfdsUse("dtd", val="validation"),
    ),
    "eurosat": Benchmark(
        "a centered satellite photo of {}.",
        "eurosat",
        "2750",
        "split_zhou_EuroSAT.json",
        TfdsUse("eurosat/rgb", _renamed(EUROSAT_NAMES.__getitem__), test=""),
    ),
    "ucf101": Benchmark(
        "a photo of a person doing {}.",
        "ucf101",
        "UCF-101-midframes",
        "split_zhou_UCF101.json",
    ),
}


def _shifted(directory: str, images: str, builder: str) -> Benchmark:
    tfds = TfdsUse(builder, _names_of_wordnet_ids, train="")
    return Benchmark("a photo of a {}.", directory, images, tfds=tfds)


# Only tested on, with prompts that were trained on ImageNet.
_SHIFTED = {
    "imagenetv2": _shifted(
        "imagenetv2", "imagenetv2-matched-frequency-format-val", "imagenet_v2/matched-frequency"
    ),
    "imagenet_sketch": _shifted("imagenet-sketch", "images", "imagenet_sketch"),
    "imagenet_a": _shifted("imagenet-adversarial", "imagenet-a", "imagenet_a"),
    "imagenet_r": _shifted("imagenet-rendition", "imagenet-r", "imagenet_r"),
}
CATALOGUE: dict[str, Benchmark] = {**_PAPER, **_SHIFTED}
PAPER_DATASETS, SHIFTED_IMAGENETS = tuple(_PAPER), tuple(_SHIFTED)

# To try everything without a download: small drawings, and a small CLIP that knows their words.
DRAWINGS: dict[str, Setting] = {
    "clip.weights": "tiny-clip",
    "dataset.template": "a drawing of a {}.",
    "dataset.shots": 8,
    # Measured on 64-pixel drawings: the published crops, down to 8 % of the area, leave too little
    # to learn from, and with eight examples a class, a random context is worse than these words.
    "text_prompt.init": "a drawing of a",
    "train.augment": False,
}
# Chosen on the validation images, see docs/measurements.md; other settings are as published.
DIGITS: dict[str, Setting] = {
    "clip.weights": "tiny-clip",
    "dataset.template": "a drawing of the number {}.",
    # From a random context, one seed of two stays near chance.
    "text_prompt.init": "a drawing of the number",
    # Batches of 32 would make five steps an epoch, but prompts on this CLIP take thousands.
    "train.batch_size": 4,
    "train.epochs": 100,
    # A part of a digit is often another digit, and so is its mirror image.
    "train.augment": False,
}
EMBEDDED: dict[str, Mapping[str, Setting]] = {
    "digits": DIGITS,
    "emoji": DRAWINGS,
    "emoji_noto": DRAWINGS,
}
DEFAULT_DATASET = "digits"


def settings_of(name: str) -> Mapping[str, Setting]:
    """Return the settings by key that differ from the defaults on a dataset; "folder" has none.

    Raise UserError for an unknown name.
    """
    if name in EMBEDDED:
        return EMBEDDED[name]
    if name in CATALOGUE:
        return CATALOGUE[name].settings
    if name == "folder":
        return {}
    raise UserError(
        f"configs: no dataset {name!r}; choose {' or '.join(EMBEDDED)} (embedded), folder (your "
        f"own, with --config.dataset.root=DIR) or one of {', '.join(CATALOGUE)}."
    )
