"""The paper's datasets in CoOp's directory layout, on tiny copies of the real trees."""

import json
import random

import numpy as np
import pytest

from configs import dpt
from dpt_jax.data.catalogue import CATALOGUE
from dpt_jax.data.coop import read_coop
from dpt_jax.errors import UserError
from tests.helpers import coop_trees
from tests.helpers.commands import assert_refused, in_process

pytestmark = pytest.mark.compiles

CLASSNAMES = {
    "imagenet": ("tench", "goldfish", "great white shark"),
    "caltech101": ("face", "accordion", "airplane", "crocodile head"),
    "oxford_pets": ("abyssinian", "american bulldog", "russian blue"),
    "stanford_cars": (
        "2000 AM General Hummer SUV",
        "2012 Acura RL Sedan",
        "2012 Ram C/V Cargo Van Minivan",
    ),
    "oxford_flowers": ("pink primrose", "hard-leaved pocket orchid", "colt's foot"),
    "food101": ("apple pie", "baby back ribs"),
    "fgvc_aircraft": ("707-320", "A340-300", "F/A-18", "Gulfstream IV"),
    "sun397": ("abbey", "outdoor apartment building", "indoor church"),
    "dtd": ("banded", "blotchy"),
    "eurosat": ("Annual Crop Land", "Forest", "Sea or Lake"),
    "ucf101": ("Apply Eye Makeup", "Yo Yo", "Handstand Pushups"),
    "imagenetv2": ("tench", "goldfish", "great white shark"),
    "imagenet_sketch": ("tench", "goldfish", "great white shark"),
    "imagenet_a": ("goldfish", "great white shark"),
    "imagenet_r": ("goldfish", "great white shark"),
}
SPLIT = [name for name in CATALOGUE if CATALOGUE[name].split]


def config_of(name, root, **settings):
    config = dpt.get_config(name).dataset
    config.root = str(root)
    config.update(settings)
    return config


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_dataset_reads_from_its_raw_download(name, tmp_path):
    coop_trees.make(name, tmp_path)
    found = read_coop(name, tmp_path)
    assert found.classnames == CLASSNAMES[name]
    paths = [e.path for part in (found.train, found.val, found.test) for e in part]
    assert len(set(paths)) == len(paths)
    for split in (found.train, found.test) if CATALOGUE[name].trainable else (found.test,):
        assert {e.label for e in split} == set(range(len(found.classnames)))
    for example in found.test:
        assert found.read(example.path).size == (12, 9)


@pytest.mark.parametrize("name", SPLIT)
def test_a_published_split_is_used_and_the_raw_lists_are_not_read(name, tmp_path):
    directory = coop_trees.make(name, tmp_path)
    images = directory / CATALOGUE[name].images
    files = [f.relative_to(images).as_posix() for f in sorted(images.rglob("*.jpg"))][:6]
    split = {"train": [[files[0], 0, "one_name"], [files[1], 1, "two"]],
             "val": [[files[2], 0, "one_name"], [files[3], 1, "two"]],
             "test": [[files[5], 1, "two"], [files[4], 0, "one_name"]]}  # fmt: skip
    (directory / CATALOGUE[name].split).write_text(json.dumps(split))
    found = read_coop(name, tmp_path)
    assert found.classnames == ("one name", "two")
    prefix = images.relative_to(tmp_path).as_posix()
    assert [(e.path, e.label) for e in found.test] == [
        (f"{prefix}/{files[5]}", 1),
        (f"{prefix}/{files[4]}", 0),
    ]
    assert [len(part) for part in (found.train, found.val, found.test)] == [2, 2, 2]


def test_split_from_folders_is_that_of_the_published_rule(tmp_path):
    """Per class in order, one stream of random numbers: shuffle; half, a fifth, the rest."""
    coop_trees.make("eurosat", tmp_path)
    found = read_coop("eurosat", tmp_path)
    random.seed(1)
    expected = ([], [], [])
    for label, folder in enumerate(["AnnualCrop", "Forest", "SeaLake"]):
        files = [f"eurosat/2750/{folder}/image_{i:04d}.jpg" for i in range(10)]
        random.shuffle(files)
        for own, part in zip(expected, (files[:5], files[5:7], files[7:]), strict=True):
            own += [(file, label) for file in part]
    assert (
        tuple([tuple(e) for e in part] for part in (found.train, found.val, found.test)) == expected
    )


def test_validation_fifth_is_that_of_the_published_rule(tmp_path):
    coop_trees.make("oxford_pets", tmp_path)
    found = read_coop("oxford_pets", tmp_path)
    random.seed(1)
    train, val = [], []
    for label, breed in enumerate(["Abyssinian", "american_bulldog", "Russian_Blue"]):
        files = [f"oxford_pets/images/{breed}_{i + 1}.jpg" for i in range(5)]
        random.shuffle(files)
        val += [(files[0], label)]
        train += [(file, label) for file in files[1:]]
    assert [tuple(e) for e in found.train] == train
    assert [tuple(e) for e in found.val] == val


def remove(file):
    if file.is_dir():
        for inner in sorted(file.rglob("*"), reverse=True):
            inner.rmdir() if inner.is_dir() else inner.unlink()
        file.rmdir()
    else:
        file.unlink()


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("eurosat", "."),
        ("oxford_pets", "annotations/test.txt"),
        ("oxford_flowers", "cat_to_name.json"),
        ("stanford_cars", "cars_test_annos_withlabels.mat"),
        ("fgvc_aircraft", "images_variant_val.txt"),
        ("sun397", "ClassName.txt"),
        ("ucf101", "ucfTrainTestlist/classInd.txt"),
        ("imagenet", "classnames.txt"),
        ("imagenetv2", "imagenetv2-matched-frequency-format-val/1"),
        ("fgvc_aircraft", "images/1000000.jpg"),
    ],
)
def test_what_is_missing_is_named(name, gone, tmp_path):
    file = (coop_trees.make(name, tmp_path) / gone).resolve()
    remove(file)
    for link in (False, True):
        if link:
            file.symlink_to("/nothing/there")
        with pytest.raises(UserError) as error:
            read_coop(name, tmp_path)
        assert str(file) in str(error.value)


@pytest.mark.parametrize(
    ("split", "says"),
    [
        ("{", "split_zhou"),
        ('{"train": [["a.jpg", 0.5, "a"]], "val": [], "test": []}', "split_zhou"),
        ({"train": [["AnnualCrop/none.jpg", 0, "a"]]}, r"2750/AnnualCrop/none\.jpg is not there"),
        ({"train": [["../x.jpg", 0, "a"]]}, r"\.\./x\.jpg"),
        ({"train": [["AnnualCrop/image_0000.jpg", 2, "a"]]}, "number 0"),
    ],
)
def test_wrong_split_is_named(split, says, tmp_path):
    directory = coop_trees.make("eurosat", tmp_path)
    if isinstance(split, dict):
        split = json.dumps({"val": [], "test": split["train"], **split})
    (directory / "split_zhou_EuroSAT.json").write_text(split)
    with pytest.raises(UserError, match=says):
        read_coop("eurosat", tmp_path)


def test_a_folder_that_one_split_lacks_does_not_shift_the_labels(tmp_path):
    directory = coop_trees.make("imagenet", tmp_path)
    remove(directory / "images" / "train" / "n01440764")
    with pytest.raises(UserError, match=r"train/n01440764 holds no images"):
        read_coop("imagenet", tmp_path)
    remove(directory / "images" / "train")
    found = read_coop("imagenet", tmp_path)  # without train it can be tested on
    assert (found.classnames, found.train) == (CLASSNAMES["imagenet"], [])


def test_unreadable_images_end_the_run_or_are_left_out_and_counted(tmp_path, clip_dir):
    directory = coop_trees.make("fgvc_aircraft", tmp_path / "data")
    for name in ("1000000", "3000000"):
        (directory / "images" / f"{name}.jpg").write_bytes(b"not a picture")
    options = ["main.py", "--config=configs/coop.py:fgvc_aircraft", "--config.train.epochs=1",
               f"--config.dataset.root={tmp_path / 'data'}", f"--config.clip.weights={clip_dir}",
               "--config.dataset.shots=-1", f"--workdir={tmp_path / 'run'}"]  # fmt: skip
    assert_refused(in_process(*options, check=False), "1000000.jpg cannot be read as an image")
    # As the message says: the same command with on_error=skip.
    options += ["--config.dataset.on_error=skip", "--config.eval.save_logits=True"]
    done = in_process(*options)
    assert "1 of 12 training images could not be read and were left out" in done.stdout
    assert "(1 more could not be read and were left out)" in done.stdout
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["n"], results["unreadable"]) == (11, 1)
    paths = np.load(tmp_path / "run" / "predictions.npz")["path"]
    assert len(paths) == 11
    assert "fgvc_aircraft/images/3000000.jpg" not in paths
