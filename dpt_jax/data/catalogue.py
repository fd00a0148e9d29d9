"""The datasets of the paper: their templates, published settings, directories and TFDS names."""

from typing import NamedTuple

from dpt_jax.errors import UserError


class TfdsUse(NamedTuple):
    """How a dataset of tensorflow-datasets is used.

    builder: its name and config. train, val, test: which of its splits serve as
    what, "+" joining several and "" for none; without test, train is split by
    the rule that made the published splits.
    """

    builder: str
    train: str = ""
    val: str = ""
    test: str = ""


class Benchmark(NamedTuple):
    """What is particular to one dataset.

    template: the hand-written text of a class, for zero-shot CLIP and the frozen
    texts of training. directory: where CoOp's DATASETS.md puts it under the
    common root. images: the folder that image paths are relative to, below it.
    split: the file of its published split, or "" where the data come with one.
    tfds: its use of TFDS, None where TFDS does not have it. trainable: False for
    the shifted ImageNets, which are only tested on. warmup_epochs, epochs and
    guidance_epochs: as the published scripts set them.
    """

    template: str
    directory: str
    images: str
    split: str = ""
    tfds: TfdsUse | None = None
    trainable: bool = True
    warmup_epochs: int = 10
    epochs: int = 60
    guidance_epochs: int = 30


PLAIN = "a photo of a {}."

CATALOGUE: dict[str, Benchmark] = {
    "imagenet": Benchmark(
        PLAIN,
        "imagenet",
        "images",
        tfds=TfdsUse("imagenet2012", train="train", test="validation"),
        warmup_epochs=1,
    ),
    "caltech101": Benchmark(
        PLAIN,
        "caltech-101",
        "101_ObjectCategories",
        "split_zhou_Caltech101.json",
        tfds=TfdsUse("caltech101", train="train", test="test"),
    ),
    "oxford_pets": Benchmark(
        "a photo of a {}, a type of pet.",
        "oxford_pets",
        "images",
        "split_zhou_OxfordPets.json",
        tfds=TfdsUse("oxford_iiit_pet", train="train", test="test"),
    ),
    "stanford_cars": Benchmark(
        PLAIN,
        "stanford_cars",
        "",
        "split_zhou_StanfordCars.json",
        tfds=TfdsUse("cars196", train="train", test="test"),
    ),
    "oxford_flowers": Benchmark(
        "a photo of a {}, a type of flower.",
        "oxford_flowers",
        "jpg",
        "split_zhou_OxfordFlowers.json",
        # Ten images a class each; sixteen shots need both.
        tfds=TfdsUse("oxford_flowers102", train="train+validation", test="test"),
    ),
    "food101": Benchmark(
        "a photo of {}, a type of food.",
        "food-101",
        "images",
        "split_zhou_Food101.json",
        tfds=TfdsUse("food101", train="train", test="validation"),
    ),
    "fgvc_aircraft": Benchmark("a photo of a {}, a type of aircraft.", "fgvc_aircraft", "images"),
    "sun397": Benchmark(
        PLAIN,
        "sun397",
        "SUN397",
        "split_zhou_SUN397.json",
        # The partition that the published split is made from.
        tfds=TfdsUse("sun397/standard-part1-120k", train="train", test="test"),
    ),
    "dtd": Benchmark(
        "{} texture.",
        "dtd",
        "images",
        "split_zhou_DescribableTextures.json",
        tfds=TfdsUse("dtd", train="train", val="validation", test="test"),
    ),
    "eurosat": Benchmark(
        "a centered satellite photo of {}.",
        "eurosat",
        "2750",
        "split_zhou_EuroSAT.json",
        tfds=TfdsUse("eurosat/rgb", train="train"),
    ),
    "ucf101": Benchmark(
        "a photo of a person doing {}.",
        "ucf101",
        "UCF-101-midframes",
        "split_zhou_UCF101.json",
        tfds=TfdsUse("ucf101/ucf101_1", train="train", test="test"),
    ),
    "imagenetv2": Benchmark(
        PLAIN,
        "imagenetv2",
        "imagenetv2-matched-frequency-format-val",
        tfds=TfdsUse("imagenet_v2/matched-frequency", test="test"),
        trainable=False,
    ),
    "imagenet_sketch": Benchmark(
        PLAIN,
        "imagenet-sketch",
        "images",
        tfds=TfdsUse("imagenet_sketch", test="test"),
        trainable=False,
    ),
    "imagenet_a": Benchmark(
        PLAIN,
        "imagenet-adversarial",
        "imagenet-a",
        tfds=TfdsUse("imagenet_a", test="test"),
        trainable=False,
    ),
    "imagenet_r": Benchmark(
        PLAIN,
        "imagenet-rendition",
        "imagenet-r",
        tfds=TfdsUse("imagenet_r", test="test"),
        trainable=False,
    ),
}

# Part of the repository, to try everything without a download.
EMBEDDED = ("emoji", "emoji_noto")

# Averages of the paper are over these; the shifted ImageNets are tested on with ImageNet's prompts.
PAPER_DATASETS = tuple(name for name, benchmark in CATALOGUE.items() if benchmark.trainable)
SHIFTED_IMAGENETS = tuple(name for name, benchmark in CATALOGUE.items() if not benchmark.trainable)


OWN_IMAGES = "folder"


def settings_of(dataset: str) -> dict[str, int | float | bool | str]:
    """Return the settings of a dataset where they differ from the defaults, by dotted key.

    dataset: an embedded one, one of the paper's, or "folder". Raise UserError for another name.
    """
    if dataset == OWN_IMAGES:
        return {}
    if dataset in EMBEDDED:
        return {
            "clip.weights": "tiny-clip",
            "dataset.template": "a drawing of a {}.",
            "dataset.shots": 8,
            "text_prompt.init": "a drawing of a",
            "train.augment": False,
        }
    if dataset not in CATALOGUE:
        raise UserError(
            f"configs: no dataset {dataset!r}; choose {' or '.join(EMBEDDED)} (embedded), folder "
            f"(your own, with --config.dataset.root=DIR) or one of {', '.join(CATALOGUE)}."
        )
    benchmark = CATALOGUE[dataset]
    return {
        "dataset.source": "coop",
        "dataset.template": benchmark.template,
        "train.epochs": benchmark.epochs,
        "train.warmup_epochs": benchmark.warmup_epochs,
        "loss.guidance_epochs": benchmark.guidance_epochs,
    }
