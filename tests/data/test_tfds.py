"""The paper's datasets from tensorflow-datasets: its labels, its splits, its records."""

import json
import pickle
import random
import sys

import numpy as np
import pytest

from dpt_jax.data.tfds import USES, read_tfds
from tests.helpers import tfds_trees
from tests.helpers.commands import command, refused
from tests.helpers.golden import DATA
from tests.helpers.object_store import put_folder

# Keys of gpt_file/*_prompt.json in github.com/OpenGVLab/CaFo, which works on CoOp's splits, and for
# Caltech101 the published split. The keys of two datasets are not in the order of the labels.
GOLDEN = json.loads((DATA / "classnames.json").read_text())
TWO_CLASSES = tfds_trees.TWO_CLASSES


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
        names = TWO_CLASSES if name in ("imagenet_a", "imagenet_r") else labels_of(name, root)
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
def test_what_tensorflow_datasets_does_not_have_is_named(name, tmp_path):
    refused(name, read_tfds, name, str(tmp_path))
