"""Evaluations of one process share images and frozen features: fewer reads, and the same bits."""

import importlib
import shutil

import numpy as np
import pytest
from PIL import Image

from dpt_jax.data import records
from dpt_jax.evaluation import evaluate as evaluation
from dpt_jax.training import initial_prompts
from dpt_jax.training import setup as experiments
from tests.helpers.configs import small_config
from tests.helpers.golden import SMALL

pytestmark = pytest.mark.compiles

IMAGES = 18  # of the test split


@pytest.fixture
def reads(monkeypatch):
    """The files that were read, in any order. Nothing is cached before the test."""
    files = []
    read = records.read_image
    monkeypatch.setattr(
        records, "read_image", lambda *file, **how: files.append(file) or read(*file, **how)
    )
    monkeypatch.setattr(records, "cache", records.ImageCache())
    return files


@pytest.fixture
def evaluate(clip, clip_dir, tmp_path):
    """(method, feature cache) -> its predictions on the small images."""
    shutil.copytree(SMALL / "images", tmp_path / "images")

    def predict(method, features=None):
        config = small_config(
            clip_dir,
            importlib.import_module(f"configs.{method}"),
            dataset__root=str(tmp_path / "images"),
        )
        part = config.text_prompt if method == "coop" else config.visual_prompt
        part.length, config.dataset.shots, config.eval.batch_size = 2, -1, 5
        prepared = experiments.prepare(config, clip)._replace(features=features)
        return evaluation.predict(prepared, initial_prompts.initial_prompts(prepared))

    return predict


def assert_same(found, expected):
    for own, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(own, other)


def test_images_are_read_once_and_the_bits_are_the_same(evaluate, reads, tmp_path, monkeypatch):
    features = {}
    expected = {method: evaluate(method) for method in ("coop", "vpt")}
    assert len(reads) == IMAGES
    for method in ("coop", "vpt", "coop"):
        assert_same(evaluate(method, features), expected[method])
    assert len(reads) == IMAGES
    # Without the images, only a method with visual prompts reads them again.
    monkeypatch.setattr(records, "cache", records.ImageCache(limit=0))
    assert_same(evaluate("coop", features), expected["coop"])
    assert len(reads) == IMAGES
    assert_same(evaluate("vpt", features), expected["vpt"])
    assert len(reads) == 2 * IMAGES
    # A file that was changed is another image, though its name is the same.
    changed = next((tmp_path / "images" / "test").rglob("*.png"))
    Image.new("RGB", (9, 9), "red").save(changed)
    assert_same(evaluate("coop", features), evaluate("coop"))
    assert len(reads) == 4 * IMAGES


def test_the_image_cache_keeps_to_its_limit_and_to_the_current_dataset():
    decoded = []

    def decode():
        decoded.append(1)
        return Image.new("RGB", (5, 5))

    cache = records.ImageCache(limit=300)  # three images of 100 bytes
    for _ in range(2):
        for key in "abcd":
            cache.get(key, "one dataset", decode)
    assert len(decoded) == 5  # a, b and c were cached, d was not
    for _ in range(2):
        for key in "xyza":
            cache.get(key, "another", decode)
    assert len(decoded) == 5 + 3 + 1 + 1
