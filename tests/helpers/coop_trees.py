"""Tiny copies of the fifteen datasets, laid out as their downloads are, quirks included."""

import json
import pathlib

import numpy as np
from PIL import Image
from scipy.io import savemat

from dpt_jax.data.catalogue import CATALOGUE

PER_CLASS = 10


def picture(file: pathlib.Path, shade: int) -> None:
    """A small image of one grey; `shade` tells it from the others."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 9), (shade % 256,) * 3).save(file)


def text(file: pathlib.Path, lines: list[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines))


def class_folders(images: pathlib.Path, folders: list[str], suffix: str = ".jpg") -> None:
    for c, folder in enumerate(folders):
        for i in range(PER_CLASS):
            picture(images / folder / f"image_{i:04d}{suffix}", 20 * c + i)


def caltech101(directory: pathlib.Path, images: pathlib.Path) -> None:
    class_folders(
        images,
        ["BACKGROUND_Google", "Faces", "Faces_easy", "accordion", "airplanes", "crocodile_head"],
    )


def oxford_pets(directory: pathlib.Path, images: pathlib.Path) -> None:
    for split in ("trainval", "test"):
        lines = []
        for label, breed in enumerate(["Abyssinian", "american_bulldog", "Russian_Blue"], 1):
            for i in range(5):
                name = f"{breed}_{i + (100 if split == 'test' else 1)}"
                picture(images / f"{name}.jpg", i)
                lines.append(f"{name} {label} 1 1")
        text(directory / "annotations" / f"{split}.txt", lines)


def stanford_cars(directory: pathlib.Path, images: pathlib.Path) -> None:
    (directory / "devkit").mkdir(parents=True)
    classes = [
        "AM General Hummer SUV 2000",
        "Acura RL Sedan 2012",
        "Ram C/V Cargo Van Minivan 2012",
    ]
    cells = np.empty((1, len(classes)), object)
    cells[0] = classes
    savemat(directory / "devkit" / "cars_meta.mat", {"class_names": cells})
    for folder, file in (
        ("cars_train", directory / "devkit" / "cars_train_annos.mat"),
        ("cars_test", directory / "cars_test_annos_withlabels.mat"),
    ):
        rows = np.zeros((1, 15), [("bbox_x1", object), ("class", object), ("fname", object)])
        for i in range(15):
            name = f"{i + 1:05d}.jpg"
            picture(directory / folder / name, i)
            rows[0, i] = (np.uint8(39), np.uint8(i % 3 + 1), name)
        savemat(file, {"annotations": rows})


def oxford_flowers(directory: pathlib.Path, images: pathlib.Path) -> None:
    labels = [77] * PER_CLASS + [1] * PER_CLASS + [2] * PER_CLASS
    labels = [{77: 3}.get(label, label) for label in labels]
    for i in range(1, len(labels) + 1):
        picture(images / f"image_{i:05d}.jpg", i)
    savemat(directory / "imagelabels.mat", {"labels": np.array([labels], np.uint8)})
    names = {"1": "pink primrose", "2": "hard-leaved pocket orchid", "3": "colt's foot"}
    text(directory / "cat_to_name.json", [json.dumps(names)])


def food101(directory: pathlib.Path, images: pathlib.Path) -> None:
    class_folders(images, ["apple_pie", "baby_back_ribs"])


def dtd(directory: pathlib.Path, images: pathlib.Path) -> None:
    class_folders(images, ["banded", "blotchy"])
    (images / "banded" / ".directory").write_text("left by a file manager")


def eurosat(directory: pathlib.Path, images: pathlib.Path) -> None:
    class_folders(images, ["AnnualCrop", "Forest", "SeaLake"])


def fgvc_aircraft(directory: pathlib.Path, images: pathlib.Path) -> None:
    variants = ["707-320", "A340-300", "F/A-18", "Gulfstream IV"]
    text(directory / "variants.txt", variants)
    for number, split in enumerate(("train", "val", "test")):
        lines = []
        for c, variant in enumerate(variants):
            for i in range(3):
                name = f"{1000000 * (number + 1) + 10 * c + i:07d}"
                picture(images / f"{name}.jpg", i)
                lines.append(f"{name} {variant}")
        text(directory / f"images_variant_{split}.txt", lines)


def sun397(directory: pathlib.Path, images: pathlib.Path) -> None:
    folders = ["/a/abbey", "/a/apartment_building/outdoor", "/c/church/indoor"]
    text(directory / "ClassName.txt", folders)
    for split in ("Training", "Testing"):
        lines = [f"{folder}/sun_{split.lower()}{i}.jpg" for folder in folders for i in range(5)]
        for i, line in enumerate(lines):
            picture(images / line[1:], i)
        text(directory / f"{split}_01.txt", lines)


def ucf101(directory: pathlib.Path, images: pathlib.Path) -> None:
    actions = ["ApplyEyeMakeup", "YoYo", "HandstandPushups"]
    lists = directory / "ucfTrainTestlist"
    text(lists / "classInd.txt", [f"{i} {action}" for i, action in enumerate(actions, 1)])
    folders = ["Apply_Eye_Makeup", "Yo_Yo", "Handstand_Pushups"]
    for split in ("train", "test"):
        lines = []
        for c, (action, folder) in enumerate(zip(actions, folders, strict=True), 1):
            for i in range(5):
                video = f"v_{action}_g{i:02d}_{split}"
                picture(images / folder / f"{video}.jpg", i)
                lines.append(f"{action}/{video}.avi" + (f" {c}" if split == "train" else ""))
        text(lists / f"{split}list01.txt", lines)


WORDNET = ["n01440764 tench", "n01443537 goldfish", "n01484850 great white shark"]


def imagenet(directory: pathlib.Path, images: pathlib.Path) -> None:
    text(directory / "classnames.txt", WORDNET)
    for split in ("train", "val"):
        class_folders(images / split, [line.split()[0] for line in WORDNET], ".JPEG")


def imagenetv2(directory: pathlib.Path, images: pathlib.Path) -> None:
    text(directory / "classnames.txt", WORDNET)
    class_folders(images, ["0", "1", "2"], ".jpeg")


def imagenet_sketch(directory: pathlib.Path, images: pathlib.Path) -> None:
    text(directory / "classnames.txt", WORDNET)
    class_folders(images, [line.split()[0] for line in WORDNET], ".JPEG")


def subset(directory: pathlib.Path, images: pathlib.Path) -> None:
    text(directory / "classnames.txt", WORDNET)
    class_folders(images, ["n01443537", "n01484850"])
    (images / "README.txt").write_text("comes with the download")


TREES = {
    "imagenet": imagenet,
    "caltech101": caltech101,
    "oxford_pets": oxford_pets,
    "stanford_cars": stanford_cars,
    "oxford_flowers": oxford_flowers,
    "food101": food101,
    "fgvc_aircraft": fgvc_aircraft,
    "sun397": sun397,
    "dtd": dtd,
    "eurosat": eurosat,
    "ucf101": ucf101,
    "imagenetv2": imagenetv2,
    "imagenet_sketch": imagenet_sketch,
    "imagenet_a": subset,
    "imagenet_r": subset,
}


def make(name: str, root: pathlib.Path) -> pathlib.Path:
    """Writes the raw download of a dataset below `root`; its directory."""
    benchmark = CATALOGUE[name]
    directory = root / benchmark.directory
    images = directory / benchmark.images
    images.mkdir(parents=True)
    TREES[name](directory, images)
    return directory
