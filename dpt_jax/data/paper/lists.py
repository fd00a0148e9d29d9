"""Datasets that come with lists of their images: text, JSON or MATLAB files."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from dpt_jax.data.benchmark import Benchmark, Lists, Record, TfdsUse, split_all, split_train
from dpt_jax.data.listfiles import fields, lines, matlab_row, text
from dpt_jax.io import reading


def renamed(rename: Callable[[str], str]) -> Callable[[Sequence[str]], dict[str, str]]:
    """Return a function from TFDS's labels to their renamed class names."""
    return lambda labels: {label: rename(label).replace("_", " ") for label in labels}


def _whole(cell: Any) -> int:
    """Return a MATLAB number, which may be stored as a float, as an integer."""
    if int(cell) != cell:
        raise ValueError(f"{cell} is not a class number")
    return int(cell)


def read_oxford_pets(directory: epath.Path, images: epath.Path) -> Lists:
    """Read lines such as "Abyssinian_100 1 1 1": image, class, species, breed of the species."""

    def read(split: str) -> list[Record]:
        file = directory / "annotations" / f"{split}.txt"
        with reading(file, "a list of images"):
            return [
                Record(f"{image}.jpg", int(label) - 1, image.rpartition("_")[0].lower())
                for image, label, _, _ in fields(file, 4)
            ]

    return split_train(read("trainval"), read("test"))


OXFORD_PETS = Benchmark(
    name="oxford_pets",
    template="a photo of a {}, a type of pet.",
    directory="oxford_pets",
    images="images",
    read_raw=read_oxford_pets,
    split="split_zhou_OxfordPets.json",
    tfds=TfdsUse("oxford_iiit_pet", train="train", test="test", classnames=renamed(str.lower)),
)


def car_name(name: str) -> str:
    """Return a car's name with the year first: "Audi TTS Coupe 2012" -> "2012 Audi TTS Coupe"."""
    model, _, year = name.rpartition(" ")
    return f"{year} {model}" if model else year


def read_stanford_cars(directory: epath.Path, images: epath.Path) -> Lists:
    """Read the class names and the annotations of both splits from MATLAB files."""
    meta = directory / "devkit" / "cars_meta.mat"
    with reading(meta, "a MATLAB list of class names"):
        names = [car_name(str(cell.item())) for cell in matlab_row(meta, "class_names")]
    name_of = dict(enumerate(names, 1))

    def read(folder: str, file: epath.Path) -> list[Record]:
        with reading(file, "a MATLAB list of images"):
            found = [
                (str(row["fname"].item()), _whole(row["class"].item()))
                for row in matlab_row(file, "annotations")
            ]
            return [
                Record(f"{folder}/{image}", label - 1, name_of[label]) for image, label in found
            ]

    trainval = read("cars_train", directory / "devkit" / "cars_train_annos.mat")
    return split_train(trainval, read("cars_test", directory / "cars_test_annos_withlabels.mat"))


STANFORD_CARS = Benchmark(
    name="stanford_cars",
    template="a photo of a {}.",
    directory="stanford_cars",
    images="",
    read_raw=read_stanford_cars,
    split="split_zhou_StanfordCars.json",
    tfds=TfdsUse("cars196", train="train", test="test", classnames=renamed(car_name)),
)


def read_oxford_flowers(directory: epath.Path, images: epath.Path) -> Lists:
    """Read the label of each numbered image from MATLAB, and names of labels from JSON."""
    names_file, labels_file = directory / "cat_to_name.json", directory / "imagelabels.mat"
    with reading(names_file, "a JSON object of class names"):
        name_of = {label: str(name) for label, name in json.loads(text(names_file)).items()}
    with reading(labels_file, "a MATLAB list of labels"):
        labels = [_whole(cell) for cell in matlab_row(labels_file, "labels")]
        records = [
            Record(f"image_{i:05d}.jpg", label - 1, name_of[str(label)])
            for i, label in enumerate(labels, 1)
        ]
    return split_all(records)


OXFORD_FLOWERS = Benchmark(
    name="oxford_flowers",
    template="a photo of a {}, a type of flower.",
    directory="oxford_flowers",
    images="jpg",
    read_raw=read_oxford_flowers,
    split="split_zhou_OxfordFlowers.json",
    tfds=TfdsUse(
        "oxford_flowers102",
        # Ten images a class each; sixteen shots need both.
        train="train+validation",
        test="test",
        # One of TFDS's names, "pink-yellow dahlia?", is in doubt.
        classnames=renamed(lambda label: label.rstrip("?")),
    ),
)


def read_fgvc_aircraft(directory: epath.Path, images: epath.Path) -> Lists:
    """Read lines such as "1025794 707-320" of the dataset's own three splits."""
    variants = directory / "variants.txt"
    with reading(variants, "a list of class names"):
        labels = {variant: label for label, variant in enumerate(lines(variants))}

    def read(split: str) -> list[Record]:
        file = directory / f"images_variant_{split}.txt"
        with reading(file, "a list of images"):
            return [Record(f"{image}.jpg", labels[name], name) for image, name in fields(file, 2)]

    return Lists(read("train"), read("val"), read("test"))


FGVC_AIRCRAFT = Benchmark(
    name="fgvc_aircraft",
    template="a photo of a {}, a type of aircraft.",
    directory="fgvc_aircraft",
    images="images",
    read_raw=read_fgvc_aircraft,
)


def sun397_name(path: str) -> str:
    """Return a class's path reversed, without the folder of its letter.

    "c/church/outdoor" becomes "outdoor church".
    """
    return " ".join(reversed(path.strip("/").split("/")[1:]))


def read_sun397(directory: epath.Path, images: epath.Path) -> Lists:
    """Read lists of paths that begin with a slash: "/i/inn/indoor"."""
    classes = directory / "ClassName.txt"
    with reading(classes, "a list of classes"):
        labels = {folder: label for label, folder in enumerate(lines(classes))}

    def read(file: epath.Path) -> list[Record]:
        with reading(file, "a list of images"):
            folders = [(path[1:], path.rpartition("/")[0]) for path in lines(file)]
            return [Record(path, labels[folder], sun397_name(folder)) for path, folder in folders]

    return split_train(read(directory / "Training_01.txt"), read(directory / "Testing_01.txt"))


SUN397 = Benchmark(
    name="sun397",
    template="a photo of a {}.",
    directory="sun397",
    images="SUN397",
    read_raw=read_sun397,
    split="split_zhou_SUN397.json",
    tfds=TfdsUse(
        "sun397/standard-part1-120k",  # the partition that the published split is made from
        train="train",
        test="test",
        classnames=renamed(sun397_name),
    ),
)


def ucf101_name(action: str) -> str:
    """Return a word for each capital: "ApplyEyeMakeup" -> "Apply_Eye_Makeup"."""
    return "_".join(re.findall("[A-Z][^A-Z]*", action))


def read_ucf101(directory: epath.Path, images: epath.Path) -> Lists:
    """Read lists of videos, each of which is one image here: its middle frame."""
    lists = directory / "ucfTrainTestlist"
    classes = lists / "classInd.txt"
    with reading(classes, "a list of classes"):
        labels = {action: int(label) - 1 for label, action in fields(classes, 2)}

    def read(file: epath.Path) -> list[Record]:
        records = []
        with reading(file, "a list of videos"):
            for line in lines(file):
                # "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1", in the test list without label.
                action, _, video = line.split()[0].partition("/")
                folder = ucf101_name(action)
                frame = f"{folder}/{video.removesuffix('.avi')}.jpg"
                records.append(Record(frame, labels[action], folder))
        return records

    return split_train(read(lists / "trainlist01.txt"), read(lists / "testlist01.txt"))


UCF101 = Benchmark(
    name="ucf101",
    template="a photo of a person doing {}.",
    directory="ucf101",
    images="UCF-101-midframes",
    read_raw=read_ucf101,
    split="split_zhou_UCF101.json",
    tfds=TfdsUse("ucf101/ucf101_1", train="train", test="test", classnames=renamed(ucf101_name)),
)
