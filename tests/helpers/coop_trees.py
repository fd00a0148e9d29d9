"""Tiny copies of the fifteen datasets in CoOp's layout, quirks included."""

import json
import pathlib

from PIL import Image

from dpt_jax.data.catalogue import CATALOGUE

PER_CLASS = 10
# {folder of the images: name in the published split}, in the order of the classes.
SPLITS = {
    "caltech101": {"Faces": "face", "accordion": "accordion", "crocodile_head": "crocodile_head"},
    "oxford_pets": {"": "abyssinian"},
    "stanford_cars": {"cars_train": "2000 AM General Hummer SUV"},
    "oxford_flowers": {"": "pink primrose"},
    "food101": {"apple_pie": "apple_pie", "baby_back_ribs": "baby_back_ribs"},
    "sun397": {"a/abbey": "abbey", "a/apartment_building/outdoor": "outdoor apartment_building"},
    "dtd": {"banded": "banded", "blotchy": "blotchy"},
    "eurosat": {"AnnualCrop": "Annual Crop Land", "Forest": "Forest", "SeaLake": "Sea or Lake"},
    "ucf101": {"Apply_Eye_Makeup": "Apply_Eye_Makeup", "Yo_Yo": "Yo_Yo"},
}
WORDNET = ["n01440764 tench", "n01443537 goldfish", "n01484850 great white shark"]


def picture(file: pathlib.Path, shade: int) -> None:
    """A small image of one grey, identified by `shade`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 9), (shade % 256,) * 3).save(file)


def text(file: pathlib.Path, lines: list[str]) -> None:
    file.write_text("".join(f"{line}\n" for line in lines))


def class_folders(images: pathlib.Path, folders: list[str], suffix: str = ".jpg") -> None:
    for c, folder in enumerate(folders):
        for i in range(PER_CLASS):
            picture(images / folder / f"image_{i:04d}{suffix}", 20 * c + i)


def published_split(name: str, directory: pathlib.Path, images: pathlib.Path) -> None:
    """Half of each class to train on, two images to validate on, the rest to test on."""
    class_folders(images, [*SPLITS[name]])
    split: dict[str, list] = {"train": [], "val": [], "test": []}
    for label, (folder, classname) in enumerate(SPLITS[name].items()):
        for i in range(PER_CLASS):
            path = (pathlib.PurePosixPath(folder) / f"image_{i:04d}.jpg").as_posix()
            own = "train" if i < 5 else "val" if i < 7 else "test"
            split[own].append([path, label, classname])
    text(directory / f"split_zhou_{CATALOGUE[name].split}.json", [json.dumps(split)])


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


def imagenets(name: str, directory: pathlib.Path, images: pathlib.Path) -> None:
    """ImageNet and its variants; two of them lack a class."""
    text(directory / "classnames.txt", WORDNET)
    folders = [line.split()[0] for line in WORDNET]
    if name == "imagenet":
        folders = [f"{split}/{folder}" for split in ("train", "val") for folder in folders]
    if name == "imagenetv2":
        folders = ["0", "1", "2"]
    class_folders(images, folders[1:] if name in ("imagenet_a", "imagenet_r") else folders, ".JPEG")
    (images / "README.txt").write_text("comes with the download")


def make(name: str, root: pathlib.Path) -> pathlib.Path:
    """Write a dataset below `root`; return its directory."""
    benchmark = CATALOGUE[name]
    directory = root / benchmark.directory
    images = directory / benchmark.images
    images.mkdir(parents=True)
    if name in SPLITS:
        published_split(name, directory, images)
    elif name == "fgvc_aircraft":
        fgvc_aircraft(directory, images)
    else:
        imagenets(name, directory, images)
    return directory
