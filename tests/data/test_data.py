"""Few-shot samples: drawn, or listed by a run, a .jsonl split or CoOp's pickles, never run."""

import json
import os
import pickle
import random
import sys
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import dpt
from dpt_jax.data.dataset import few_shot, load_dataset, read_sample
from dpt_jax.data.folder import read_folder
from dpt_jax.data.loader import LEAST_AREA, RATIO, random_box
from dpt_jax.data.records import Dataset, Example, Files
from tests.helpers import coop_trees
from tests.helpers.commands import refused
from tests.helpers.configs import small_config


def examples_of(labels):
    return [Example(f"{i}.png", label) for i, label in enumerate(labels)]


label_lists = st.lists(st.integers(0, 5), min_size=1, max_size=60)


@given(label_lists, label_lists, st.sampled_from([1, 2, 4, 8, 16]), st.integers(1, 3))
def test_few_shot_sample_is_that_of_the_published_rule(train, val, shots, seed):
    """random.seed(k); per label in order of appearance, random.sample; train first, then val."""
    random.seed(seed)
    expected = []
    for labels, count in ((train, shots), (val, min(shots, 4))):
        items = {}
        for example in examples_of(labels):
            items.setdefault(example.label, []).append(example)
        expected.append([])
        for own in items.values():
            expected[-1] += random.sample(own, count) if len(own) >= count else own
    assert few_shot(examples_of(train), examples_of(val), shots, seed) == tuple(expected)


def test_natural_sample_has_every_class_and_the_imbalance_of_the_images():
    train = examples_of([0] * 300 + [1] * 30 + [2] * 3)
    drawn, _ = few_shot(train, [], 16, 1, natural=True)
    counts = [sum(example.label == label for example in drawn) for label in range(3)]
    assert len(set(drawn)) == 3 * 16
    assert counts[0] > 30 > counts[1] >= counts[2] >= 1
    assert drawn == few_shot(train, [], 16, 1, natural=True)[0]


def test_base_and_new_share_one_sample():
    whole, base, new = (
        load_dataset(small_config("", dataset__shots=1, dataset__classes=half).dataset, seed=2)
        for half in ("all", "base", "new")
    )
    assert base.classnames + new.classnames == whole.classnames == tuple(sorted(whole.classnames))
    for part in ("train", "test"):
        rejoined = getattr(base, part) + [Example(e.path, e.label + 3) for e in getattr(new, part)]
        assert rejoined == getattr(whole, part)


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 2**32 - 1))
def test_random_box_lies_inside_and_keeps_to_the_published_ranges(width, height, seed):
    left, top, right, bottom = random_box(width, height, np.random.default_rng(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    if min(width, height) > 60 and RATIO[0] <= width / height <= RATIO[1]:
        area = (right - left) * (bottom - top) / (width * height)
        ratio = (right - left) / (bottom - top)
        assert LEAST_AREA * 0.9 <= area <= 1  # sides are rounded to pixels
        assert RATIO[0] * 0.93 <= ratio <= RATIO[1] * 1.07


@pytest.mark.parametrize(("name", "classes", "shots"), [("digits", 10, 16), ("emoji", 18, 8)])
def test_the_bundled_images_are_a_few_shot_task(name, classes, shots):
    dataset = load_dataset(dpt.get_config(name).dataset, seed=1)
    assert len(dataset.classnames) == classes
    assert len(dataset.train) == shots * classes
    root = dataset.read.root
    images = [e.path for e in read_folder(root).train + dataset.val + dataset.test]
    contents = {(root / path).read_bytes() for path in images}
    assert len(contents) == len(images)  # no test image is used for training or selection
    assert (root / "NOTICE.md").exists()


PATHS = ["images/a/1.jpg", "images/a/2.jpg", "images/b/1.jpg"]
ELSEWHERE = [f"/their/data/caltech/{path}" for path in PATHS]


@pytest.fixture
def whole(tmp_path):
    """A dataset of two classes, with a test image that is not to be trained on."""
    train = [Example(path, int("/b/" in path)) for path in PATHS]
    return Dataset(Files(tmp_path), ("a", "b"), train, [], [Example("images/b/9.jpg", 1)])


@pytest.fixture
def datum(monkeypatch):
    """The class of the records, in the module of the code that pickles them."""

    class Datum:
        def __init__(self, path, label):
            self._impath, self._label, self._domain, self._classname = path, label, 0, "abc"[label]

    module = types.ModuleType("dassl.data.datasets.base_dataset")
    Datum.__module__, Datum.__qualname__ = module.__name__, "Datum"
    module.Datum = Datum
    for name in ("dassl", "dassl.data", "dassl.data.datasets", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    return Datum


def write(tmp_path, kind, datum, paths=ELSEWHERE, labels=(0, 0, 1)):
    file = tmp_path / f"sample.{kind}"
    records = [datum(path, label) for path, label in zip(paths, labels, strict=True)]
    if kind == "pkl":
        content = {"train": records, "val": records[:1]}
        file.write_bytes(pickle.dumps(content, protocol=pickle.HIGHEST_PROTOCOL))
    elif kind == "jsonl":
        file.write_text("".join(f"{json.dumps(vars(record))}\n" for record in records))
    else:
        file.write_text("".join(f"{path}\n" for path in paths))
    return file


@pytest.mark.parametrize("kind", ["pkl", "jsonl", "txt"])
def test_each_kind_of_file_gives_its_images_in_its_order(kind, whole, datum, tmp_path):
    file = write(tmp_path, kind, datum, ELSEWHERE[::-1], (1, 0, 0))
    assert read_sample(file, whole, 2) == whole.train[::-1]


@pytest.mark.parametrize(
    ("paths", "labels", "shots", "says"),
    [
        (["images/a/7.jpg"], (0,), 1, "images/a/7.jpg"),
        (["images/b/9.jpg"], (1,), 1, "images/b/9.jpg"),
        (PATHS[:1], (1,), 1, "label 1"),
        (PATHS, (0, 0, 1), 1, "dataset.shots=2"),
        ([], (), 1, "sample.pkl.*lists no images"),
    ],
)
def test_a_sample_that_is_not_of_the_dataset_is_refused(
    paths, labels, shots, says, whole, datum, tmp_path
):
    refused(says, read_sample, write(tmp_path, "pkl", datum, paths, labels), whole, shots)


def test_a_sample_is_halved_as_a_drawn_one_is(tmp_path, datum):
    coop_trees.make("eurosat", tmp_path)
    config = dpt.get_config("eurosat").dataset
    config.root, config.shots = str(tmp_path), 2
    every = load_dataset(config, seed=7).train
    sample = str(write(tmp_path, "pkl", datum, [e.path for e in every], [e.label for e in every]))
    for config.classes in ("base", "new"):
        config.sample = ""
        drawn = load_dataset(config, seed=7)
        config.sample = sample
        assert load_dataset(config, seed=1).train == drawn.train


class Runs:
    """Runs a command if Python's own unpickler reads it."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("pkl", pickle.dumps({"train": [Runs(os.system, "touch hacked")]})),
        ("pkl", pickle.dumps({"train": []})[:-1]),
        ("jsonl", b"{"),
        ("jsonl", b'{"_impath": 3, "_label": 0}'),
        ("jsonl", b"\xe9"),
    ],
)
def test_damaged_and_hostile_files_are_refused_and_nothing_of_them_is_run(
    kind, content, whole, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / f"sample.{kind}"
    file.write_bytes(content)
    refused(rf"sample\.{kind}", read_sample, file, whole, 1)
    assert not (tmp_path / "hacked").exists()
