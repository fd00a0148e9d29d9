"""The datasets that have a name: published ones, and those bundled with the package."""

from collections.abc import Mapping

from dpt_jax.data.benchmark import Benchmark, Setting
from dpt_jax.data.paper import folders, imagenet, lists
from dpt_jax.errors import UserError

# In the order of the paper's tables.
CATALOGUE: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        imagenet.IMAGENET,
        folders.CALTECH101,
        lists.OXFORD_PETS,
        lists.STANFORD_CARS,
        lists.OXFORD_FLOWERS,
        folders.FOOD101,
        lists.FGVC_AIRCRAFT,
        lists.SUN397,
        folders.DTD,
        folders.EUROSAT,
        lists.UCF101,
        imagenet.IMAGENETV2,
        imagenet.IMAGENET_SKETCH,
        imagenet.IMAGENET_A,
        imagenet.IMAGENET_R,
    )
}

# Averages are over these. Prompts trained on ImageNet are tested on the shifted ImageNets.
PAPER_DATASETS = tuple(name for name, benchmark in CATALOGUE.items() if benchmark.trainable)
SHIFTED_IMAGENETS = tuple(name for name, benchmark in CATALOGUE.items() if not benchmark.trainable)

# To try everything without a download: small drawings, and a small CLIP that knows their words.
DRAWINGS: dict[str, Setting] = {
    "clip.weights": "tiny-clip",
    "dataset.template": "a drawing of a {}.",
    "dataset.shots": 8,
    # Measured on 64-pixel drawings: the published crops, down to 8 % of the area, leave too little
    # to learn from, and a random context is not worth the words in eight examples a class.
    "text_prompt.init": "a drawing of a",
    "train.augment": False,
}
# Chosen on the validation images, see docs/measurements.md; what is not named is as published.
DIGITS: dict[str, Setting] = {
    "clip.weights": "tiny-clip",
    "dataset.template": "a drawing of the number {}.",
    # From a random context, one seed of two stays near chance.
    "text_prompt.init": "a drawing of the number",
    # Batches of 32 would make five steps an epoch, where prompts on this CLIP take thousands.
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

    Raise UserError for a name that no dataset has.
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
