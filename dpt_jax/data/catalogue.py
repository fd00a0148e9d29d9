"""The named datasets, published or bundled, and dataset.descriptions: several texts of each class.

A configuration holds the content of a descriptions file, so a run needs the file only once.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dpt_jax.errors import UserError
from dpt_jax.io import ASSETS, as_path, reading

Setting = str | int | float | bool


def imagenet_classnames() -> list[str]:
    """Return the 1,000 names of ImageNet's classes, in the order of their WordNet ids."""
    return (ASSETS / "imagenet_classnames.txt").read_text(encoding="utf-8").splitlines()


class Benchmark(NamedTuple):
    """One published dataset."""

    directory: str  # where CoOp's DATASETS.md puts it below the common root
    images: str = "images"  # the folder that image paths are relative to, below the directory
    split: str = ""  # NAME of its split_zhou_NAME.json, "" if the data have a split
    template: str = "a photo of a {}."  # text of a class, for zero-shot CLIP and frozen texts
    differs: Mapping[str, Setting] = {}  # settings of the published scripts, if not the defaults


# Averages are over these, in the order of the paper's tables.
_PAPER = {
    "imagenet": Benchmark("imagenet", differs={"train.warmup_epochs": 1}),
    "caltech101": Benchmark("caltech-101", "101_ObjectCategories", "Caltech101"),
    "oxford_pets": Benchmark(
        "oxford_pets", "images", "OxfordPets", "a photo of a {}, a type of pet."
    ),
    "stanford_cars": Benchmark("stanford_cars", "", "StanfordCars"),
    "oxford_flowers": Benchmark(
        "oxford_flowers", "jpg", "OxfordFlowers", "a photo of a {}, a type of flower."
    ),
    "food101": Benchmark("food-101", "images", "Food101", "a photo of {}, a type of food."),
    "fgvc_aircraft": Benchmark("fgvc_aircraft", template="a photo of a {}, a type of aircraft."),
    "sun397": Benchmark("sun397", "SUN397", "SUN397"),
    "dtd": Benchmark("dtd", "images", "DescribableTextures", "{} texture."),
    "eurosat": Benchmark("eurosat", "2750", "EuroSAT", "a centered satellite photo of {}."),
    "ucf101": Benchmark("ucf101", "UCF-101-midframes", "UCF101", "a photo of a person doing {}."),
}
# Test-only datasets, for prompts that were trained on ImageNet.
_SHIFTED = {
    "imagenetv2": Benchmark("imagenetv2", "imagenetv2-matched-frequency-format-val"),
    "imagenet_sketch": Benchmark("imagenet-sketch"),
    "imagenet_a": Benchmark("imagenet-adversarial", "imagenet-a"),
    "imagenet_r": Benchmark("imagenet-rendition", "imagenet-r"),
}
CATALOGUE: dict[str, Benchmark] = {**_PAPER, **_SHIFTED}
PAPER_DATASETS, SHIFTED_IMAGENETS = tuple(_PAPER), tuple(_SHIFTED)

# To try everything without a download: small drawings, and a small CLIP that knows their words.
DRAWINGS: dict[str, Setting] = {
    "clip.weights": "tiny-clip",
    "dataset.template": "a drawing of a {}.",
    "dataset.shots": 8,
    # Measured on 64-pixel drawings: the published crops, down to 8 % of the area, leave too little
    # to learn from, and with eight examples per class, a random context is worse than these words.
    "text_prompt.init": "a drawing of a",
    "train.augment": False,
}
# Chosen on the validation images, see docs/measurements.md; other settings are as published.
DIGITS: dict[str, Setting] = {
    "clip.weights": "tiny-clip",
    "dataset.template": "a drawing of the number {}.",
    # From a random context, one seed of two stays near chance.
    "text_prompt.init": "a drawing of the number",
    # Batches of 32 would make five steps per epoch, but prompts on this CLIP take thousands.
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
    """Return the settings by key that differ from the defaults on a dataset; "folder" has none."""
    if name in EMBEDDED:
        return EMBEDDED[name]
    if name in CATALOGUE:
        own = CATALOGUE[name]
        return {"dataset.source": "coop", "dataset.template": own.template, **own.differs}
    if name == "folder":
        return {}
    raise UserError(
        f"configs: no dataset {name!r}; choose {' or '.join(EMBEDDED)} (bundled), folder (your "
        f"own, with --config.dataset.root=DIR) or one of {', '.join(CATALOGUE)}."
    )


def read_descriptions(given: str) -> str:
    """Return the content of a descriptions file; what begins with { already is content."""
    if not given or given.lstrip().startswith("{"):
        return given
    with reading(given, "descriptions"):
        content = as_path(given).read_text(encoding="utf-8-sig")
    return json.dumps(parse_descriptions(content, given), sort_keys=True)


def parse_descriptions(content: str, source: str = "dataset.descriptions") -> dict[str, list[str]]:
    """Return the texts of each class.  Raise UserError if a class is there twice or has no text."""

    def no_class_twice(pairs: list[tuple[str, list[str]]]) -> dict[str, list[str]]:
        texts = dict(pairs)
        if len(texts) < len(pairs):
            raise ValueError("a class is in it twice")
        return texts

    with reading(source, "descriptions, {class name: [text, …]}"):
        texts: dict[str, list[str]] = json.loads(content, object_pairs_hook=no_class_twice)
        for name, own in texts.items():
            strings = isinstance(own, list) and all(isinstance(x, str) and x.strip() for x in own)
            if not own or not strings:
                raise TypeError(f"{name!r} has no list of texts, or an empty one")
    return texts


def descriptions_of(content: str, classnames: Sequence[str]) -> list[list[str]]:
    """Return the texts of each of these classes.  Raise UserError if one has none."""
    texts = parse_descriptions(content)
    if without := [name for name in classnames if name not in texts]:
        raise UserError(
            f"dataset.descriptions has no text for class {without[0]!r}: add one, or leave out the "
            "descriptions."
        )
    return [texts[name] for name in classnames]


def digest_of_descriptions(content: str) -> str:
    """Return a short digest for results, "" without descriptions."""
    return hashlib.sha256(content.encode()).hexdigest()[:8] if content else ""
