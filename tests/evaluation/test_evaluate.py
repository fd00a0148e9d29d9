"""Evaluation: its images, frozen features that runs of one process share, and a linear probe."""

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
from tests.helpers.commands import assert_refused, command_refused, in_process, refused
from tests.helpers.configs import results_of, small_config, small_flags, small_splits
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


def test_classes_without_test_images_are_refused(clip, clip_dir):
    prepared = experiments.prepare(small_config(clip_dir, coop), clip)
    refused("no test images.*dataset.classes", evaluation.predict, prepared, {}, examples=[])


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

    first = logits({})
    for given in (features, features):
        np.testing.assert_array_equal(logits(given), first)
    Image.new("RGB", (9, 9), "red").save(next((root / "test").rglob("*.png")))
    changed = logits(features)
    assert (changed != first).any(-1).sum() == 1
    np.testing.assert_array_equal(changed, logits({}))


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


@pytest.fixture(scope="module")
def validated(tmp_path_factory):
    """The small images: the training images also for testing, the test images for validation."""
    root = tmp_path_factory.mktemp("validated")
    return small_splits(root, train="train", val="test", test="train")


def probe(clip_dir, root, workdir, *arguments, check=True):
    # The test images are those of the training.
    own = {"dataset__root": root, "dataset__shots": -1, "dataset__strict": False}
    flags = [*small_flags(clip_dir, **own), f"--workdir={workdir}", *arguments]
    # The probe has none of the parts of the configured method.
    return in_process("probe", "--config=dpt_zslp:folder", *flags, check=check)


def test_a_probe_separates_what_it_was_fitted_to(clip_dir, validated, tmp_path):
    done = probe(clip_dir, validated, tmp_path / "run", "--config.eval.save_logits=True")
    assert "validation images right" in done.stdout
    assert "%, difference " in done.stdout
    results = results_of(tmp_path / "run")
    assert (results["method"], results["shots"]) == ("probe", -1)
    assert results["accuracy"] > results["zero_shot_accuracy"]
    assert results["trained_on"] == {"dataset": "folder", "classes": "all"}
    with np.load(tmp_path / "run" / "predictions.npz") as found:
        np.testing.assert_allclose(np.exp(found["logits"]).sum(-1), 1, atol=1e-5)
    listed = (tmp_path / "run" / "train_files.txt").read_text().split()
    assert len(listed) == results["n"]
    assert "linear probe on" in in_process("report", tmp_path / "run").stdout
    # Nothing takes it for a run whose prompts it could show.
    command_refused("", "report", tmp_path / "run", "--html")
    flags = [*small_flags(clip_dir, dataset__root=validated), f"--workdir={tmp_path / 'run'}"]
    command_refused("probe", "main.py", "--config=zeroshot:folder", *flags)


def test_a_probe_chooses_by_as_few_validation_images_as_protocols_have(
    clip_dir, validated, tmp_path
):
    done = probe(clip_dir, validated, tmp_path / "run", "--config.dataset.shots=1")
    assert "of 6 validation images right (at most 1 per class)" in done.stdout


def test_without_validation_images_there_is_no_probe(clip_dir, tmp_path):
    done = probe(clip_dir, IMAGES, tmp_path / "run", check=False)
    assert_refused(done, "folder has no validation images")
    assert not (tmp_path / "run").exists()
