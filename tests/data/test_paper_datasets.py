"""The paper's datasets, on tiny copies: in CoOp's layout, and of tensorflow-datasets."""

import json
import pickle
import random
import shutil
import sys

import numpy as np
import pytest

from dpt_jax.data.catalogue import CATALOGUE, PAPER_DATASETS
from dpt_jax.data.coop import read_coop
from dpt_jax.data.records import Example
from dpt_jax.data.tfds import USES, read_tfds
from dpt_jax.errors import UserError
from tests.helpers import coop_trees, tfds_trees
from tests.helpers.commands import command, command_refused, in_process, refused
from tests.helpers.configs import small_flags
from tests.helpers.golden import DATA
from tests.helpers.object_store import put_folder
from tests.helpers.runs import results_of

IMAGENET = ("tench", "goldfish", "great white shark")
CLASSNAMES = {
    name: tuple(classname.replace("_", " ") for classname in names.values())
    for name, names in coop_trees.SPLITS.items()
}
CLASSNAMES |= dict.fromkeys(("imagenet", "imagenetv2", "imagenet_sketch"), IMAGENET)
CLASSNAMES |= dict.fromkeys(("imagenet_a", "imagenet_r"), IMAGENET[1:])
CLASSNAMES["fgvc_aircraft"] = ("707-320", "A340-300", "F/A-18", "Gulfstream IV")


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_dataset_is_read(name, tmp_path):
    coop_trees.make(name, tmp_path)
    found = read_coop(name, tmp_path)
    assert found.classnames == CLASSNAMES[name]
    paths = [e.path for part in (found.train, found.val, found.test) for e in part]
    assert len(set(paths)) == len(paths)
    for split in (found.train, found.test) if name in PAPER_DATASETS else (found.test,):
        assert {e.label for e in split} == set(range(len(found.classnames)))
    for example in found.test:
        assert found.read(example.path).size == (12, 9)


@pytest.mark.parametrize("name", ["dtd", "imagenet"])
def test_a_dataset_of_a_bucket(bucket, tmp_path, name):
    coop_trees.make(name, tmp_path)
    put_folder(tmp_path, bucket)
    assert read_coop(name, bucket)[1:] == read_coop(name, tmp_path)[1:]


def test_the_published_split_gives_order_and_names(tmp_path):
    """Also with a byte-order mark, and labels that do not come in order."""
    directory = coop_trees.make("eurosat", tmp_path)
    paths = [f"SeaLake/image_{i:04d}.jpg" for i in range(4)]
    split = {
        "train": [[paths[0], 1, "two"], [paths[1], 0, "one_name"]],
        "val": [],
        "test": [[paths[3], 1, "other"], [paths[2], 0, "one_name"]],
    }
    (directory / "split_zhou_EuroSAT.json").write_text(f"\ufeff{json.dumps(split)}")
    found = read_coop("eurosat", tmp_path)
    assert found.classnames == ("one name", "two")
    assert found.train == [Example(f"eurosat/2750/{paths[i]}", 1 - i) for i in range(2)]
    assert found.test == [Example(f"eurosat/2750/{paths[i]}", i - 2) for i in (3, 2)]


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("eurosat", "."),
        ("eurosat", "split_zhou_EuroSAT.json"),
        ("fgvc_aircraft", "images_variant_val.txt"),
        ("imagenet", "classnames.txt"),
        ("imagenetv2", "imagenetv2-matched-frequency-format-val/1"),
        ("fgvc_aircraft", "images/1000000.jpg"),
    ],
)
def test_what_is_missing_is_named(name, gone, tmp_path):
    file = (coop_trees.make(name, tmp_path) / gone).resolve()
    shutil.rmtree(file) if file.is_dir() else file.unlink()
    for link in (False, True):
        if link:
            file.symlink_to("/nothing/there")
        with pytest.raises(UserError) as error:
            read_coop(name, tmp_path)
        assert str(file) in str(error.value)


IMAGE = "AnnualCrop/image_0000.jpg"


@pytest.mark.parametrize(
    ("train", "named"),
    [
        ([[IMAGE, 0]], "split_zhou"),
        ([[IMAGE, 1, "a"]], "number 0"),
        ([[IMAGE, 0, "_"]], "number 0"),
        ([[IMAGE, 0, "a"], [IMAGE, -1, "b"]], "split_zhou"),
        ([["AnnualCrop/none.jpg", 0, "a"]], r"2750/AnnualCrop/none\.jpg"),
        ([], "split_zhou"),
    ],
)
def test_a_wrong_split_is_named(train, named, tmp_path):
    directory = coop_trees.make("eurosat", tmp_path)
    split = {"train": train, "val": [], "test": train}
    (directory / "split_zhou_EuroSAT.json").write_text(json.dumps(split))
    refused(named, read_coop, "eurosat", tmp_path)


LISTS = {"eurosat": "split_zhou_EuroSAT.json", "imagenet": "classnames.txt"}
LISTS["fgvc_aircraft"] = "images_variant_train.txt"


@pytest.mark.parametrize(("name", "file"), LISTS.items())
def test_a_damaged_list_is_named(name, file, tmp_path):
    file = coop_trees.make(name, tmp_path) / file
    whole = file.read_bytes()
    for damaged in (b"<html>404</html>", b"\xff\xfe" + whole, b"[1, 2]", whole[: len(whole) // 2]):
        file.write_bytes(damaged)
        refused(str(tmp_path), read_coop, name, tmp_path)


def test_a_folder_that_one_split_lacks_does_not_shift_the_labels(tmp_path):
    directory = coop_trees.make("imagenet", tmp_path)
    shutil.rmtree(directory / "images" / "train" / "n01440764")
    refused("train/n01440764", read_coop, "imagenet", tmp_path)
    shutil.rmtree(directory / "images" / "train")
    found = read_coop("imagenet", tmp_path)  # without train it can be tested on
    assert (found.classnames, found.train) == (IMAGENET, [])


@pytest.mark.compiles
def test_unreadable_images_end_the_run_or_are_left_out_and_counted(tmp_path, clip_dir):
    """One for training, and all test images of one class."""
    directory = coop_trees.make("fgvc_aircraft", tmp_path / "data")
    broken = [f"images/{number}.jpg" for number in (1000000, 3000000, 3000001, 3000002)]
    for name in broken:
        (directory / name).write_bytes(b"not a picture")
    own = {"dataset__root": tmp_path / "data", "dataset__shots": -1, "train__epochs": 1}
    options = ["main.py", "--config=coop:fgvc_aircraft", *small_flags(clip_dir, **own)]
    options += [f"--workdir={tmp_path / 'run'}"]
    command_refused("1000000.jpg cannot be read as an image", *options)
    # As the message says: the same command with on_error=skip.
    options += ["--config.dataset.on_error=skip", "--config.eval.save_logits=True"]
    done = in_process(*options)
    assert "1 of 12 training images could not be read and were left out" in done.stdout
    assert "(3 more could not be read and were left out)" in done.stdout
    assert "no test image of these classes could be read: 707-320.\n" in done.stdout
    results = results_of(tmp_path / "run")
    assert (results["n"], results["unreadable"]) == (9, 3)
    paths = np.load(tmp_path / "run" / "predictions.npz")["path"]
    assert len(paths) == 9
    assert not {*paths} & {f"fgvc_aircraft/{name}" for name in broken}


# Keys of gpt_file/*_prompt.json in github.com/OpenGVLab/CaFo, which works on CoOp's splits, and for
# Caltech101 the published split. The keys of two datasets are not in the order of the labels.
GOLDEN = json.loads((DATA / "classnames.json").read_text())


@pytest.fixture(scope="module")
def root(made_once):
    """TFDS's data directory with a tiny copy of every dataset."""
    return made_once("tfds", lambda root: command("-m", "tests.helpers.tfds_trees", str(root)))


def labels_of(name, root):
    """As TFDS wrote them beside the data."""
    (file,) = (root / USES[name].builder).rglob("label.labels.txt")
    return file.read_text().splitlines()


@pytest.mark.parametrize("name", [name for name in USES if name in GOLDEN])
def test_labels_become_the_published_class_names(name, root):
    found = list(USES[name].classnames(labels_of(name, root)).values())
    published = GOLDEN[name]["classnames"]
    if not GOLDEN[name]["ordered"]:
        found, published = sorted(found), sorted(published)
    assert found == published


@pytest.mark.parametrize("name", USES)
def test_every_dataset_is_read_by_position(name, root):
    found, use = read_tfds(name, str(root)), USES[name]
    if use.test:
        for name_of_split in ("train", "val", "test"):
            examples, split = getattr(found, name_of_split), getattr(use, name_of_split)
            per_class = tfds_trees.PER_CLASS * (split.count("+") + 1) if split else 0
            assert len(examples) == per_class * len(found.classnames)
    read = pickle.loads(pickle.dumps(found.read))  # as loader processes get it
    by_tfds = {c: label for label, c in USES[name].classnames(labels_of(name, root)).items()}
    for example in found.test[:5]:
        # Each label has its own greys, see tfds_trees.
        label = by_tfds[found.classnames[example.label]]
        of_two = name in ("imagenet_a", "imagenet_r")
        names = tfds_trees.TWO_CLASSES if of_two else labels_of(name, root)
        shades = {(7 * names.index(label) + i) % 250 for i in range(tfds_trees.PER_CLASS)}
        assert int(np.asarray(read(example.path)).mean().round()) in shades


def test_a_copy_of_what_is_needed_is_read_from_a_bucket(root, bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("dtd", "eurosat"):
        put_folder(root / name, f"{bucket}/tfds/{name}")
    found, expected = read_tfds("dtd", f"{bucket}/tfds"), read_tfds("dtd", str(root))
    assert found[1:] == expected[1:]
    path = found.train[3].path
    np.testing.assert_array_equal(found.read(path), expected.read(path))
    copied = [file.name for file in tmp_path.rglob("*") if file.is_file()]
    assert any("dtd-train.array_record" in name for name in copied)
    assert not any("eurosat" in name for name in copied)
    refused(f"{bucket}/tfds has no food101", read_tfds, "food101", f"{bucket}/tfds")


@pytest.mark.process
def test_prepared_data_are_read_without_tensorflow(root):
    code = f"""
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name == "tensorflow" else find(name, *rest)
from dpt_jax.data.tfds import read_tfds
found = read_tfds("dtd", {str(root)!r})
print(found.read(found.test[0].path).size)
"""
    assert command("-c", code).stdout == "(12, 9)\n"


def test_a_preparation_that_fails_names_the_dataset(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", "false")
    refused("dtd", read_tfds, "dtd", str(tmp_path))


def test_a_dataset_of_one_split_is_divided_by_the_published_rule(root):
    found = read_tfds("eurosat", str(root))
    labels = np.load(next((root / "eurosat").rglob("labels-train.npy"))).tolist()
    random.seed(1)
    expected = [], [], []
    for label in dict.fromkeys(labels):
        own = [f"train/{i}" for i, x in enumerate(labels) if x == label]
        random.shuffle(own)
        for part, chosen in zip(expected, (own[:2], own[2:3], own[3:]), strict=True):
            part += [(path, label) for path in chosen]
    for part, own in zip(expected, (found.train, found.val, found.test), strict=True):
        assert [tuple(example) for example in own] == part


@pytest.mark.parametrize("name", ["fgvc_aircraft", "ucf101"])
def test_datasets_missing_from_tensorflow_datasets_are_named(name, tmp_path):
    refused(name, read_tfds, name, str(tmp_path))
