"""Evaluation: its images, and the frozen features that runs of one process share."""

import dataclasses
import shutil

import numpy as np
import pytest
from PIL import Image

from configs import coop, vpt
from dpt_jax.data import records
from dpt_jax.evaluation import evaluate as evaluation
from dpt_jax.training import setup as experiments
from dpt_jax.training.loop import train
from dpt_jax.training.saved import initial_prompts
from tests.helpers.commands import in_process
from tests.helpers.configs import small_config, small_flags
from tests.helpers.golden import IMAGES

pytestmark = pytest.mark.compiles


def test_training_and_evaluation_take_images_as_the_model_does(clip, clip_dir, tmp_path):
    """A model that squashes images gives the same as with images squashed before."""
    for image in IMAGES.rglob("*.png"):
        wide = Image.open(image).convert("RGB").resize((50, 34))
        name = image.relative_to(IMAGES)
        for folder, given in (("wide", wide), ("square", wide.resize((32, 32), Image.BILINEAR))):
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            given.save(tmp_path / folder / name)
    own = dataclasses.replace(clip.config.preprocessing, resize="squash", interpolation="bilinear")
    squashing = clip._replace(config=dataclasses.replace(clip.config, preprocessing=own))
    found = []
    for folder in ("wide", "square"):
        config = small_config(clip_dir, vpt, dataset__root=str(tmp_path / folder))
        config.visual_prompt.length, config.train.epochs, config.train.augment = 2, 1, False
        prepared = experiments.prepare(config, squashing)
        prompts = train(prepared, tmp_path / f"{folder}_run")
        found.append((prompts["visual"]["tokens"], evaluation.predict(prepared, prompts).logits))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_classes_without_a_readable_test_image_are_named(clip_dir, tmp_path):
    shutil.copytree(IMAGES, tmp_path / "images")
    first, *_ = sorted((tmp_path / "images" / "test").iterdir())
    for image in first.iterdir():
        image.write_bytes(b"no picture")
    own = {"dataset__root": tmp_path / "images", "dataset__on_error": "skip"}
    flags = ["--config=zeroshot:folder", *small_flags(clip_dir, **own)]
    done = in_process("main.py", *flags, f"--workdir={tmp_path / 'run'}")
    name = first.name.replace("_", " ")
    assert f"no test image of these classes could be read: {name}.\n" in done.stdout
    assert "(3 more could not be read and were left out)" in done.stdout


@pytest.mark.parametrize("method", [coop, vpt])
def test_caches_of_features_and_images_change_no_bit(method, clip, clip_dir, tmp_path, monkeypatch):
    """And a file that was changed is another image, though its name is the same."""
    root = shutil.copytree(IMAGES, tmp_path / "images")
    monkeypatch.setattr(records, "cache", records.ImageCache())
    config = small_config(clip_dir, method, dataset__root=str(root))
    config.text_prompt.length = config.visual_prompt.length = 2
    config.dataset.shots, config.eval.batch_size = -1, 5
    features = {}

    def logits(features):
        prepared = experiments.prepare(config, clip)._replace(features=features)
        return evaluation.predict(prepared, initial_prompts(prepared)).logits

    first = logits(None)
    for given in (features, features, None):
        np.testing.assert_array_equal(logits(given), first)
    Image.new("RGB", (9, 9), "red").save(next((root / "test").rglob("*.png")))
    changed = logits(features)
    assert (changed != first).any(-1).sum() == 1
    np.testing.assert_array_equal(changed, logits(None))


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
