"""Few-shot samples, the pixels of images, and the order of batches."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import dpt
from dpt_jax.data.dataset import load_dataset
from dpt_jax.data.folder import read_folder
from dpt_jax.data.records import Example
from dpt_jax.data.sampling import few_shot, half_of_classes
from dpt_jax.data.transforms import LEAST_AREA, RATIO, random_box
from tests.helpers.commands import refused
from tests.helpers.golden import SMALL

IMAGES = SMALL / "images"


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
    train = [
        Example(f"{label}/{i}", label) for label, n in enumerate((300, 30, 3)) for i in range(n)
    ]
    drawn, _ = few_shot(train, [], 16, 1, natural=True)
    counts = [sum(example.label == label for example in drawn) for label in range(3)]
    assert len(set(drawn)) == 3 * 16
    assert counts[0] > 30 > counts[1] >= counts[2] >= 1
    assert drawn == few_shot(train, [], 16, 1, natural=True)[0]


@given(st.integers(2, 300))
def test_halves_of_the_classes(classes):
    base, new = half_of_classes(classes, "base"), half_of_classes(classes, "new")
    assert [*base, *new] == list(range(classes))
    assert len(base) - len(new) in (0, 1)


def config_of(**settings):
    config = dpt.get_config("folder").dataset
    config.root = str(IMAGES)
    config.update(settings)
    return config


def test_base_and_new_share_one_sample():
    whole = load_dataset(config_of(shots=1), seed=2)
    base, new = (load_dataset(config_of(shots=1, classes=half), seed=2) for half in ("base", "new"))
    assert base.classnames + new.classnames == whole.classnames == tuple(sorted(whole.classnames))
    for part in ("train", "test"):
        rejoined = getattr(base, part) + [Example(e.path, e.label + 3) for e in getattr(new, part)]
        assert rejoined == getattr(whole, part)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"root": "/nowhere"}, "/nowhere"),
        ({"root": ""}, r"dataset\.root"),
        ({"source": "coop"}, "'folder'"),
    ],
)
def test_wrong_dataset_settings_are_named(settings, says):
    refused(says, load_dataset, config_of(**settings), seed=1)


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 2**32 - 1))
def test_random_box_lies_inside_and_keeps_to_the_published_ranges(width, height, seed):
    left, top, right, bottom = random_box(width, height, np.random.default_rng(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    if min(width, height) > 60 and RATIO[0] <= width / height <= RATIO[1]:
        area, ratio = (
            (right - left) * (bottom - top) / (width * height),
            (right - left) / (bottom - top),
        )
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
