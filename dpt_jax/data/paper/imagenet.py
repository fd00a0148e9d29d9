"""ImageNet, and the four shifted ones that its prompts are tested on."""

import importlib.resources
from collections.abc import Sequence

from etils import epath

from dpt_jax.data.benchmark import Benchmark, Lists, Record, TfdsUse, class_folders, folder_names
from dpt_jax.data.listfiles import fields
from dpt_jax.errors import UserError
from dpt_jax.io import reading

TEMPLATE = "a photo of a {}."


def imagenet_classnames() -> list[str]:
    """Return the 1,000 names of ImageNet's classes, in the order of their WordNet ids."""
    file = importlib.resources.files("dpt_jax") / "assets" / "imagenet_classnames.txt"
    return file.read_text(encoding="utf-8").splitlines()


def names_of_wordnet_ids(labels: Sequence[str]) -> dict[str, str]:
    """Return the class names of all of ImageNet's WordNet ids, in their order."""
    return dict(zip(labels, imagenet_classnames(), strict=True))


def name_by_folder(directory: epath.Path) -> dict[str, str]:
    """Return {WordNet id: class name} of the directory's own list, in the order of the classes."""
    file = directory / "classnames.txt"
    with reading(file, "a list of WordNet ids with their names"):
        return {folder: name for folder, name in fields(file, 2)}


def wordnet_folders(
    directory: epath.Path, images: epath.Path, folders: Sequence[str]
) -> list[Record]:
    """Return the images of folders that are named by WordNet ids."""
    names = name_by_folder(directory)
    if unknown := [folder for folder in folders if folder not in names]:
        raise UserError(f"{images / unknown[0]} is not in {directory / 'classnames.txt'}.")
    return class_folders(images, folders, [names[folder] for folder in folders])


def read_imagenet(directory: epath.Path, images: epath.Path) -> Lists:
    """Test on the images of `val`, as is usual; without `train` it can still be evaluated on."""
    splits = ["train", "val"] if (images / "train").is_dir() else ["val"]
    # One numbering for both, or a folder that one of them lacks would shift the labels.
    folders = sorted({folder for split in splits for folder in folder_names(images / split)})

    def read(split: str) -> list[Record]:
        records = wordnet_folders(directory, images / split, folders)
        return [r._replace(path=f"{split}/{r.path}") for r in records]

    return Lists(read("train") if "train" in splits else [], [], read("val"))


IMAGENET = Benchmark(
    name="imagenet",
    template=TEMPLATE,
    directory="imagenet",
    images="images",
    read_raw=read_imagenet,
    tfds=TfdsUse("imagenet2012", train="train", test="validation", classnames=names_of_wordnet_ids),
    differs={"train.warmup_epochs": 1},
)


def read_imagenetv2(directory: epath.Path, images: epath.Path) -> Lists:
    """Read folders named by class numbers, 0 to 999."""
    classes = list(name_by_folder(directory).values())
    folders = [str(label) for label in range(len(classes))]
    return Lists([], [], class_folders(images, folders, classes))


IMAGENETV2 = Benchmark(
    name="imagenetv2",
    template=TEMPLATE,
    directory="imagenetv2",
    images="imagenetv2-matched-frequency-format-val",
    read_raw=read_imagenetv2,
    tfds=TfdsUse("imagenet_v2/matched-frequency", test="test", classnames=names_of_wordnet_ids),
    trainable=False,
)


def read_wordnet_test(directory: epath.Path, images: epath.Path) -> Lists:
    """Read folders named by WordNet ids, numbered in their order, however many there are."""
    return Lists([], [], wordnet_folders(directory, images, folder_names(images)))


IMAGENET_SKETCH = Benchmark(
    name="imagenet_sketch",
    template=TEMPLATE,
    directory="imagenet-sketch",
    images="images",
    read_raw=read_wordnet_test,
    tfds=TfdsUse("imagenet_sketch", test="test", classnames=names_of_wordnet_ids),
    trainable=False,
)

IMAGENET_A = Benchmark(
    name="imagenet_a",
    template=TEMPLATE,
    directory="imagenet-adversarial",
    images="imagenet-a",
    read_raw=read_wordnet_test,
    tfds=TfdsUse("imagenet_a", test="test", classnames=names_of_wordnet_ids, subset=True),
    trainable=False,
)

IMAGENET_R = Benchmark(
    name="imagenet_r",
    template=TEMPLATE,
    directory="imagenet-rendition",
    images="imagenet-r",
    read_raw=read_wordnet_test,
    tfds=TfdsUse("imagenet_r", test="test", classnames=names_of_wordnet_ids, subset=True),
    trainable=False,
)
