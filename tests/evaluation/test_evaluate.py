"""Evaluation: its loop, and the images that it takes."""

import dataclasses
import shutil

import numpy as np
import pytest
from PIL import Image

from configs import vpt
from dpt_jax.evaluation import evaluate as evaluation
from dpt_jax.training import setup as experiments
from dpt_jax.training.loop import train
from tests.helpers.commands import in_process
from tests.helpers.configs import small_config
from tests.helpers.golden import SMALL

pytestmark = pytest.mark.compiles


def test_training_and_evaluation_take_images_as_the_model_does(clip, clip_dir, tmp_path):
    """A model that squashes: the same as images that were squashed before."""
    for image in (SMALL / "images").rglob("*.png"):
        wide = Image.open(image).convert("RGB").resize((50, 34))
        name = image.relative_to(SMALL / "images")
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
    shutil.copytree(SMALL / "images", tmp_path / "images")
    first, *_ = sorted((tmp_path / "images" / "test").iterdir())
    for image in first.iterdir():
        image.write_bytes(b"no picture")
    done = in_process(
        "main.py",
        "--config=configs/zeroshot.py:folder",
        f"--config.clip.weights={clip_dir}",
        f"--config.dataset.root={tmp_path / 'images'}",
        "--config.dataset.on_error=skip",
        f"--workdir={tmp_path / 'run'}",
    )
    name = first.name.replace("_", " ")
    assert f"no test image of these classes could be read: {name}.\n" in done.stdout
    assert "(3 more could not be read and were left out)" in done.stdout
