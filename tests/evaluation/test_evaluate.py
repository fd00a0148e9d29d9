"""Evaluation: its loop, and the images that it takes."""

import dataclasses
import shutil

import numpy as np
import pytest
from PIL import Image

from configs import coop, vpt
from dpt_jax.evaluation import evaluate as evaluation
from dpt_jax.training import initial_prompts as adoption
from dpt_jax.training import setup as experiments
from dpt_jax.training.loop import train
from tests.helpers.commands import in_process
from tests.helpers.configs import small_config
from tests.helpers.golden import SMALL

pytestmark = pytest.mark.compiles


class Answer:
    """An array on a device, which says when it is fetched."""

    def __init__(self, array, number, events):
        self.array, self.number, self.events = np.asarray(array), number, events
        self.shape = self.array.shape

    def __array__(self, dtype=None, copy=None):
        self.events.append(("fetch", self.number))
        return self.array


def test_a_batch_is_started_before_the_last_one_is_fetched(clip, clip_dir, monkeypatch):
    """And no more than two are on the way."""
    config = small_config(clip_dir, coop)
    config.text_prompt.length, config.eval.batch_size = 2, 5
    prepared = experiments.prepare(config, clip)
    prompts = adoption.initial_prompts(prepared)
    expected = evaluation.predict(prepared, prompts)
    events = []
    make = evaluation.make_programs

    def recording(model):
        made = make(model)

        def answer(*arguments):
            number = sum(what == "start" for what, _ in events)
            events.append(("start", number))
            return tuple(Answer(logits, number, events) for logits in made.logits(*arguments))

        return made._replace(logits=answer)

    monkeypatch.setattr(evaluation, "make_programs", recording)
    found = evaluation.predict(prepared, prompts)
    for own, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(own, other)
    order = list(dict.fromkeys(events))
    assert order == [
        *(("start", 0), ("start", 1), ("fetch", 0), ("start", 2), ("fetch", 1)),
        *(("start", 3), ("fetch", 2), ("fetch", 3)),
    ]


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
