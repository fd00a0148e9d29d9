"""The datasets of the paper: their templates, published settings, directories and TFDS names."""

from typing import NamedTuple


class Benchmark(NamedTuple):
    """What is particular to one dataset.

    template: the hand-written text of a class, for zero-shot CLIP and the frozen
    texts of training. directory: where CoOp's DATASETS.md puts it under the
    common root. images: the folder that image paths are relative to, below it.
    split: the file of its published split, or "" where the data come with one.
    tfds: its TFDS builder, "" where there is none. trainable: False for the
    shifted ImageNets, which are only tested on. warmup_epochs, epochs and
    guidance_epochs: as the published scripts set them.
    """

    template: str
    directory: str
    images: str
    split: str = ""
    tfds: str = ""
    trainable: bool = True
    warmup_epochs: int = 10
    epochs: int = 60
    guidance_epochs: int = 30


PLAIN = "a photo of a {}."

CATALOGUE: dict[str, Benchmark] = {
    "imagenet": Benchmark(PLAIN, "imagenet", "images", tfds="imagenet2012", warmup_epochs=1),
    "caltech101": Benchmark(
        PLAIN, "caltech-101", "101_ObjectCategories", "split_zhou_Caltech101.json", tfds="caltech101"
    ),
    "oxford_pets": Benchmark(
        "a photo of a {}, a type of pet.", "oxford_pets", "images", "split_zhou_OxfordPets.json", tfds="oxford_iiit_pet"
    ),
    "stanford_cars": Benchmark(PLAIN, "stanford_cars", "", "split_zhou_StanfordCars.json", tfds="cars196"),
    "oxford_flowers": Benchmark(
        "a photo of a {}, a type of flower.",
        "oxford_flowers",
        "jpg",
        "split_zhou_OxfordFlowers.json",
        tfds="oxford_flowers102",
    ),
    "food101": Benchmark(
        "a photo of {}, a type of food.", "food-101", "images", "split_zhou_Food101.json", tfds="food101"
    ),
    "fgvc_aircraft": Benchmark("a photo of a {}, a type of aircraft.", "fgvc_aircraft", "images"),
    "sun397": Benchmark(PLAIN, "sun397", "SUN397", "split_zhou_SUN397.json", tfds="sun397/standard-part1-120k"),
    "dtd": Benchmark("{} texture.", "dtd", "images", "split_zhou_DescribableTextures.json", tfds="dtd"),
    "eurosat": Benchmark(
        "a centered satellite photo of {}.", "eurosat", "2750", "split_zhou_EuroSAT.json", tfds="eurosat/rgb"
    ),
    "ucf101": Benchmark(
        "a photo of a person doing {}.", "ucf101", "UCF-101-midframes", "split_zhou_UCF101.json", tfds="ucf101"
    ),
    "imagenetv2": Benchmark(
        PLAIN,
        "imagenetv2",
        "imagenetv2-matched-frequency-format-val",
        tfds="imagenet_v2/matched-frequency",
        trainable=False,
    ),
    "imagenet_sketch": Benchmark(PLAIN, "imagenet-sketch", "images", tfds="imagenet_sketch", trainable=False),
    "imagenet_a": Benchmark(PLAIN, "imagenet-adversarial", "imagenet-a", tfds="imagenet_a", trainable=False),
    "imagenet_r": Benchmark(PLAIN, "imagenet-rendition", "imagenet-r", tfds="imagenet_r", trainable=False),
}

# Averages of the paper are over these; the shifted ImageNets are tested on with ImageNet's prompts.
PAPER_DATASETS = tuple(name for name, benchmark in CATALOGUE.items() if benchmark.trainable)
SHIFTED_IMAGENETS = tuple(name for name, benchmark in CATALOGUE.items() if not benchmark.trainable)
