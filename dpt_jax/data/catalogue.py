"""The datasets that have a name: the published ones, and those bundled with the package."""

import functools
import importlib.resources
import json
import re
from collections.abc import Callable, Mapping, Sequence

from etils import epath

from dpt_jax.data.benchmark import (
    Benchmark,
    Lists,
    RawReader,
    Record,
    Setting,
    TfdsUse,
    as_they_are,
    class_folders,
    folder_names,
    read_lines,
    read_matlab,
    split_all,
    split_train,
    text,
)
from dpt_jax.errors import UserError
from dpt_jax.io import reading

# ---- ImageNet, and the four shifted ones that its prompts are tested on.

IMAGENET_TEMPLATE = "a photo of a {}."


def imagenet_classnames() -> list[str]:
    """Return the 1,000 names of ImageNet's classes, in the order of their WordNet ids."""
    file = importlib.resources.files("dpt_jax") / "assets" / "imagenet_classnames.txt"
    return file.read_text(encoding="utf-8").splitlines()


def _names_of_wordnet_ids(labels: Sequence[str]) -> dict[str, str]:
    return dict(zip(labels, imagenet_classnames(), strict=True))


def _name_by_folder(directory: epath.Path) -> dict[str, str]:
    """Return {WordNet id: class name} of the directory's own list, in the order of the classes."""

    def pair(line: str) -> tuple[str, str]:
        folder, name = line.split(maxsplit=1)
        return folder, name

    return dict(read_lines(directory / "classnames.txt", pair))


def _wordnet_folders(
    directory: epath.Path, images: epath.Path, folders: Sequence[str]
) -> list[Record]:
    """Return the images of folders that are named by WordNet ids."""
    names = _name_by_folder(directory)
    if unknown := [folder for folder in folders if folder not in names]:
        raise UserError(f"{images / unknown[0]} is not in {directory / 'classnames.txt'}.")
    return class_folders(images, folders, [names[folder] for folder in folders])


def _read_imagenet(directory: epath.Path, images: epath.Path) -> Lists:
    """Test on the images of `val`, as is usual; without `train` it can still be evaluated on."""
    splits = ["train", "val"] if (images / "train").is_dir() else ["val"]
    # One numbering for both, or a folder that one of them lacks would shift the labels.
    folders = sorted({folder for split in splits for folder in folder_names(images / split)})

    def read(split: str) -> list[Record]:
        records = _wordnet_folders(directory, images / split, folders)
        return [r._replace(path=f"{split}/{r.path}") for r in records]

    return Lists(read("train") if "train" in splits else [], [], read("val"))


def _read_imagenetv2(directory: epath.Path, images: epath.Path) -> Lists:
    """Read folders named by class numbers, 0 to 999."""
    classes = _name_by_folder(directory).values()
    return Lists([], [], class_folders(images, map(str, range(len(classes))), classes))


def _read_wordnet_test(directory: epath.Path, images: epath.Path) -> Lists:
    """Read folders named by WordNet ids, numbered in their order, however many there are."""
    return Lists([], [], _wordnet_folders(directory, images, folder_names(images)))


def _shifted_imagenet(
    name: str,
    directory: str,
    images: str,
    builder: str,
    read_raw: RawReader = _read_wordnet_test,
    subset: bool = False,
) -> Benchmark:
    tfds = TfdsUse(builder, test="test", classnames=_names_of_wordnet_ids, subset=subset)
    return Benchmark(
        name, IMAGENET_TEMPLATE, directory, images, read_raw, tfds=tfds, trainable=False
    )


# ---- Datasets whose images lie in class folders.

CALTECH101_IGNORED = ("BACKGROUND_Google", "Faces_easy")
CALTECH101_RENAMED = {
    "airplanes": "airplane",
    "Faces": "face",
    "Leopards": "leopard",
    "Motorbikes": "motorbike",
}
# TFDS's names are all lower case, which hides that the published order puts upper case first.
CALTECH101_FOLDERS = {name.lower(): name for name in (*CALTECH101_IGNORED, *CALTECH101_RENAMED)}

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


def _read_folders(
    directory: epath.Path,
    images: epath.Path,
    renamed: Mapping[str, str] = {},
    ignored: Sequence[str] = (),
) -> Lists:
    """Return the lists that the published rule makes, with the folders' names or other ones."""
    folders = [name for name in folder_names(images) if name not in ignored]
    return split_all(class_folders(images, folders, [renamed.get(name, name) for name in folders]))


def _caltech101_names(labels: Sequence[str]) -> dict[str, str]:
    """Return the class names of TFDS's labels, in the order of the folders."""
    folders = {label: CALTECH101_FOLDERS.get(label, label) for label in labels}
    used = [label for label in labels if folders[label] not in CALTECH101_IGNORED]
    return {
        label: CALTECH101_RENAMED.get(folders[label], label).replace("_", " ")
        for label in sorted(used, key=folders.__getitem__)
    }


# ---- Datasets that come with lists of their images: text, JSON or MATLAB files.


def _renamed(rename: Callable[[str], str]) -> Callable[[Sequence[str]], dict[str, str]]:
    """Return a function from TFDS's labels to their renamed class names."""
    return lambda labels: {label: rename(label).replace("_", " ") for label in labels}


def _read_oxford_pets(directory: epath.Path, images: epath.Path) -> Lists:
    """Read lines such as "Abyssinian_100 1 1 1": image, class, species, breed of the species."""

    def record(line: str) -> Record:
        image, label, _, _ = line.split(maxsplit=3)
        return Record(f"{image}.jpg", int(label) - 1, image.rpartition("_")[0].lower())

    lists = directory / "annotations"
    train = read_lines(lists / "trainval.txt", record)
    return split_train(train, read_lines(lists / "test.txt", record))


def _car_name(name: str) -> str:
    """Return a car's name with the year first: "Audi TTS Coupe 2012" -> "2012 Audi TTS Coupe"."""
    model, _, year = name.rpartition(" ")
    return f"{year} {model}" if model else year


def _read_stanford_cars(directory: epath.Path, images: epath.Path) -> Lists:
    """Read the class names and the annotations of both splits from MATLAB files."""
    devkit = directory / "devkit"
    names = read_matlab(
        devkit / "cars_meta.mat", "class_names", lambda cell: _car_name(str(cell.item()))
    )
    name_of = dict(enumerate(names, 1))

    def read(folder: str, file: epath.Path) -> list[Record]:
        def record(row: Mapping) -> Record:
            label = int(row["class"].item())
            return Record(f"{folder}/{row['fname'].item()}", label - 1, name_of[label])

        return read_matlab(file, "annotations", record)

    train = read("cars_train", devkit / "cars_train_annos.mat")
    return split_train(train, read("cars_test", directory / "cars_test_annos_withlabels.mat"))


def _read_oxford_flowers(directory: epath.Path, images: epath.Path) -> Lists:
    """Read the label of each numbered image from MATLAB, and names of labels from JSON."""
    names = directory / "cat_to_name.json"
    with reading(names, "a JSON object of class names"):
        name_of = {int(label): str(name) for label, name in json.loads(text(names)).items()}
    labels = read_matlab(directory / "imagelabels.mat", "labels", int)
    if unnamed := {*labels} - {*name_of}:
        raise UserError(f"{names} has no name for label {min(unnamed)}: download it again.")
    return split_all(
        Record(f"image_{i:05d}.jpg", label - 1, name_of[label]) for i, label in enumerate(labels, 1)
    )


def _read_fgvc_aircraft(directory: epath.Path, images: epath.Path) -> Lists:
    """Read lines such as "1025794 707-320" of the dataset's own three splits."""
    names = read_lines(directory / "variants.txt", str)
    labels = {name: label for label, name in enumerate(names)}

    def record(line: str) -> Record:
        image, name = line.split(maxsplit=1)
        return Record(f"{image}.jpg", labels[name], name)

    splits = ("train", "val", "test")
    return Lists(*(read_lines(directory / f"images_variant_{s}.txt", record) for s in splits))


def _sun397_name(path: str) -> str:
    """Return a class's path reversed, without the folder of its letter.

    "c/church/outdoor" becomes "outdoor church".
    """
    return " ".join(reversed(path.strip("/").split("/")[1:]))


def _read_sun397(directory: epath.Path, images: epath.Path) -> Lists:
    """Read lists of paths that begin with a slash: "/i/inn/indoor"."""
    folders = read_lines(directory / "ClassName.txt", str)
    labels = {folder: label for label, folder in enumerate(folders)}

    def record(path: str) -> Record:
        folder = path.rpartition("/")[0]
        return Record(path[1:], labels[folder], _sun397_name(folder))

    train = read_lines(directory / "Training_01.txt", record)
    return split_train(train, read_lines(directory / "Testing_01.txt", record))


def _ucf101_name(action: str) -> str:
    """Return a word for each capital: "ApplyEyeMakeup" -> "Apply_Eye_Makeup"."""
    return "_".join(re.findall("[A-Z][^A-Z]*", action))


def _read_ucf101(directory: epath.Path, images: epath.Path) -> Lists:
    """Read lists of videos, each of which is one image here: its middle frame."""

    def labelled(line: str) -> tuple[str, int]:
        label, action = line.split(maxsplit=1)
        return action, int(label) - 1

    def record(line: str) -> Record:
        # "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1", in the test list without label.
        action, _, video = line.split()[0].partition("/")
        folder = _ucf101_name(action)
        return Record(f"{folder}/{video.removesuffix('.avi')}.jpg", labels[action], folder)

    lists = directory / "ucfTrainTestlist"
    labels = dict(read_lines(lists / "classInd.txt", labelled))
    train = read_lines(lists / "trainlist01.txt", record)
    return split_train(train, read_lines(lists / "testlist01.txt", record))


# In the order of the paper's tables.
_BENCHMARKS = (
    Benchmark(
        name="imagenet",
        template=IMAGENET_TEMPLATE,
        directory="imagenet",
        images="images",
        read_raw=_read_imagenet,
        tfds=TfdsUse("imagenet2012", "train", test="validation", classnames=_names_of_wordnet_ids),
        differs={"train.warmup_epochs": 1},
    ),
    Benchmark(
        name="caltech101",
        template="a photo of a {}.",
        directory="caltech-101",
        images="101_ObjectCategories",
        read_raw=functools.partial(
            _read_folders, renamed=CALTECH101_RENAMED, ignored=CALTECH101_IGNORED
        ),
        split="split_zhou_Caltech101.json",
        tfds=TfdsUse("caltech101", "train", test="test", classnames=_caltech101_names),
    ),
    Benchmark(
        name="oxford_pets",
        template="a photo of a {}, a type of pet.",
        directory="oxford_pets",
        images="images",
        read_raw=_read_oxford_pets,
        split="split_zhou_OxfordPets.json",
        tfds=TfdsUse("oxford_iiit_pet", "train", test="test", classnames=_renamed(str.lower)),
    ),
    Benchmark(
        name="stanford_cars",
        template="a photo of a {}.",
        directory="stanford_cars",
        images="",
        read_raw=_read_stanford_cars,
        split="split_zhou_StanfordCars.json",
        tfds=TfdsUse("cars196", "train", test="test", classnames=_renamed(_car_name)),
    ),
    Benchmark(
        name="oxford_flowers",
        template="a photo of a {}, a type of flower.",
        directory="oxford_flowers",
        images="jpg",
        read_raw=_read_oxford_flowers,
        split="split_zhou_OxfordFlowers.json",
        tfds=TfdsUse(
            "oxford_flowers102",
            train="train+validation",  # ten images a class each; sixteen shots need both
            test="test",
            # One of TFDS's names, "pink-yellow dahlia?", is in doubt.
            classnames=_renamed(lambda label: label.rstrip("?")),
        ),
    ),
    Benchmark(
        name="food101",
        template="a photo of {}, a type of food.",
        directory="food-101",
        images="images",
        read_raw=_read_folders,
        split="split_zhou_Food101.json",
        tfds=TfdsUse(
            "food101",
            train="train",
            test="validation",
            classnames=lambda labels: as_they_are(sorted(labels)),
        ),
    ),
    Benchmark(
        name="fgvc_aircraft",
        template="a photo of a {}, a type of aircraft.",
        directory="fgvc_aircraft",
        images="images",
        read_raw=_read_fgvc_aircraft,
    ),
    Benchmark(
        name="sun397",
        template="a photo of a {}.",
        directory="sun397",
        images="SUN397",
        read_raw=_read_sun397,
        split="split_zhou_SUN397.json",
        tfds=TfdsUse(
            "sun397/standard-part1-120k",  # the partition that the published split is made from
            train="train",
            test="test",
            classnames=_renamed(_sun397_name),
        ),
    ),
    Benchmark(
        name="dtd",
        template="{} texture.",
        directory="dtd",
        images="images",
        read_raw=_read_folders,
        split="split_zhou_DescribableTextures.json",
        tfds=TfdsUse("dtd", train="train", val="validation", test="test"),
    ),
    Benchmark(
        name="eurosat",
        template="a centered satellite photo of {}.",
        directory="eurosat",
        images="2750",
        read_raw=functools.partial(_read_folders, renamed=EUROSAT_NAMES),
        split="split_zhou_EuroSAT.json",
        tfds=TfdsUse(
            "eurosat/rgb",
            train="train",
            classnames=lambda labels: {label: EUROSAT_NAMES.get(label, label) for label in labels},
        ),
    ),
    Benchmark(
        name="ucf101",
        template="a photo of a person doing {}.",
        directory="ucf101",
        images="UCF-101-midframes",
        read_raw=_read_ucf101,
        split="split_zhou_UCF101.json",
        tfds=TfdsUse("ucf101/ucf101_1", "train", test="test", classnames=_renamed(_ucf101_name)),
    ),
    _shifted_imagenet(
        "imagenetv2",
        "imagenetv2",
        "imagenetv2-matched-frequency-format-val",
        "imagenet_v2/matched-frequency",
        _read_imagenetv2,
    ),
    _shifted_imagenet("imagenet_sketch", "imagenet-sketch", "images", "imagenet_sketch"),
    _shifted_imagenet(
        "imagenet_a", "imagenet-adversarial", "imagenet-a", "imagenet_a", subset=True
    ),
    _shifted_imagenet("imagenet_r", "imagenet-rendition", "imagenet-r", "imagenet_r", subset=True),
)
CATALOGUE: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _BENCHMARKS}

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
