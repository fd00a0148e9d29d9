"""Test images that one evaluation keeps for the next: fewer reads, and the same bits."""

import importlib
import shutil

import numpy as np
import pytest
from PIL import Image

from dpt_jax.data import records
from dpt_jax.inference import adoption, evaluation, kept
from dpt_jax.inference import experiment as experiments
from tests.helpers.configs import small_config
from tests.helpers.golden import SMALL

pytestmark = pytest.mark.compiles

IMAGES = 18  # of the test split


@pytest.fixture
def reads(monkeypatch):
    """The files that were read, in any order."""
    files = []
    read = records.read_image
    monkeypatch.setattr(records, "read_image", lambda file: files.append(file) or read(file))
    return files


@pytest.fixture
def evaluate(clip, clip_dir, tmp_path):
    """(method, what is kept) -> its predictions on the small images."""
    shutil.copytree(SMALL / "images", tmp_path / "images")

    def predict(method, images=None):
        config = small_config(
            clip_dir,
            importlib.import_module(f"configs.{method}"),
            dataset__root=str(tmp_path / "images"),
        )
        part = config.text_prompt if method == "coop" else config.visual_prompt
        part.length, config.dataset.shots, config.eval.batch_size = 2, -1, 5
        prepared = experiments.prepare(config, clip)._replace(kept=images)
        return evaluation.predict(prepared, adoption.initial_prompts(prepared))

    return predict


def assert_same(found, expected):
    for own, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(own, other)


def test_images_are_read_once_and_the_bits_are_the_same(evaluate, reads, tmp_path):
    images = kept.KeptImages()
    for method in ("coop", "vpt", "coop"):
        assert_same(evaluate(method, images), evaluate(method))
    assert len(reads) == (1 + 3) * IMAGES  # one time in all, and each time without
    # A file that was changed is another image, though its name is the same.
    changed = next((tmp_path / "images" / "test").rglob("*.png"))
    Image.new("RGB", (9, 9), "red").save(changed)
    before = evaluate("coop")
    reads.clear()
    assert_same(evaluate("coop", images), before)
    assert len(reads) == IMAGES


def test_what_is_too_large_is_read_again_where_pixels_are_needed(evaluate, reads):
    """Features are kept whatever the limit, and CoOp needs nothing else."""
    images = kept.KeptImages(limit=0)
    first = [evaluate(method, images) for method in ("coop", "vpt")]
    assert len(reads) == 2 * IMAGES
    reads.clear()
    assert_same(evaluate("coop", images), first[0])
    assert not reads
    assert_same(evaluate("vpt", images), first[1])
    assert len(reads) == IMAGES


def test_the_pixels_kept_first_are_the_first_to_go():
    def batches(size):
        return [kept.KeptBatch({}, np.zeros(size, np.uint8), None)]

    images = kept.KeptImages(limit=10)
    for name, size in (("first", 4), ("second", 6), ("third", 3)):
        images.keep(name, batches(size))
    sizes = {name: images.get(name)[0].images for name in ("first", "second", "third")}
    assert sizes["first"] is None
    assert [len(sizes[name]) for name in ("second", "third")] == [6, 3]
