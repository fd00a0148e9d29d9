"""What a run can resume with, and a run that ends with the average of its epochs."""

import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest

from configs import coop, promptsrc
from dpt_jax import distributed
from dpt_jax.clip.model import normalize
from dpt_jax.errors import UserError
from dpt_jax.evaluation.evaluate import evaluate
from dpt_jax.runs import evaluate_run, train_run, with_dtype
from dpt_jax.training import loop
from dpt_jax.training import saved as adoption
from dpt_jax.training import setup as experiments
from dpt_jax.training.checkpoints import FOLDER, Checkpoints, load_newest, newest
from dpt_jax.training.optimizer import Schedule, learning_rates, make_optimizer
from dpt_jax.training.process import Stopped
from dpt_jax.training.setup import consistency_target
from dpt_jax.training.step import StepConfig, make_step, new_state
from dpt_jax.training.workdir import save_config
from tests.helpers.commands import refused
from tests.helpers.configs import small_config
from tests.helpers.golden import IMAGES
from tests.helpers.models import frozen_features

pytestmark = pytest.mark.compiles


@pytest.fixture
def images(tmp_path):
    root = tmp_path / "images"
    shutil.copytree(IMAGES, root)
    return root


@pytest.fixture
def config(clip_dir, images):
    """CoOp for one epoch of two steps."""
    config = small_config(clip_dir, coop, dataset__root=str(images))
    config.dataset.shots, config.text_prompt.length = -1, 4
    config.train.epochs, config.train.batch_size = 1, 6
    return config


def train(config, clip, workdir, **options):
    return loop.train(experiments.prepare(config, clip), workdir, **options)


@pytest.fixture
def started(config, clip, tmp_path):
    workdir = tmp_path / "run"
    train(config, clip, workdir)
    return workdir


def test_other_images_are_refused_or_reported(config, clip, images, started, capsys):
    listed = (started / "train_files.txt").read_text()
    for folder in (images / "train").iterdir():
        shutil.copy(next(folder.iterdir()), folder / "one_more.png")
    refused(f"{started}.*train_files.txt", train, config, clip, started)
    assert (started / "train_files.txt").read_text() == listed
    config.train.epochs = 2
    capsys.readouterr()
    train(config, clip, started, allow_changes=True)
    assert "epochs of 3 steps, before 2" in capsys.readouterr().out
    assert len((started / "train_files.txt").read_text().splitlines()) == 18
    # The steps of two epochs are not taken for those of three.
    config.train.epochs, config.train.batch_size = 3, 9
    refused(
        "6 steps, 3 an epoch.* step 6, with 2", train, config, clip, started, allow_changes=True
    )


@pytest.mark.parametrize("method", ["coop", "sstext"])
def test_a_signal_in_the_last_step_ends_the_command(config, clip, tmp_path, monkeypatch, method):
    """And not only the training, before the evaluation or the next run of a sweep."""
    if method == "sstext":
        config.method = config.classifier.name = "sstext"

    class Signalled(Checkpoints):
        def wait(self):
            super().wait()
            os.kill(os.getpid(), signal.SIGTERM)

    stop = [lambda values: os.kill(os.getpid(), signal.SIGTERM)]
    if method == "sstext":
        monkeypatch.setattr(loop, "Checkpoints", Signalled)
    with pytest.raises(Stopped):
        train(config, clip, tmp_path / "run", callbacks=stop)
    assert newest(tmp_path / "run")
    train(config, clip, tmp_path / "run")


def test_another_clip_of_the_same_sizes_is_refused(config, clip, started):
    """The path of the weights may change, so the settings alone do not show this."""
    config.train.epochs = 2
    other = jax.tree.map(lambda x: x * np.float32(1.1), clip.params)
    with pytest.raises(UserError, match="run was trained on a different CLIP"):
        train(config, clip._replace(params=other, digest="other"), started, allow_changes=True)
    assert load_newest(started).step == 2


def test_settings_that_a_power_cut_lost_are_those_of_the_checkpoint(config, tmp_path):
    started = tmp_path / "run"
    train_run(config, started)
    changed = config.copy_and_resolve_references()
    changed.train.text_lr = 1.0
    for content in (None, ""):
        (started / "config.json").unlink(missing_ok=True)
        if content is not None:
            (started / "config.json").write_text(content)
        refused("train.text_lr", train_run, changed, started)
        train_run(config, started)


def test_a_state_of_another_optimizer_is_refused(config, clip, started):
    config.train.epochs, config.train.optimizer = 2, "adamw"
    refused(rf"{started}: momentum\.count", train, config, clip, started, allow_changes=True)


def test_a_run_past_its_end_is_refused(config, clip, started):
    config.train.epochs = 2
    train(config, clip, started, allow_changes=True)
    config.train.epochs = 1
    says = "was trained for 4 steps.* end at step 2"
    refused(says, train, config, clip, started, allow_changes=True)
    assert load_newest(started).step == 4


def test_the_dtype_that_is_computed_in_is_saved_and_kept(config, tmp_path):
    workdir = tmp_path / "run"
    assert config.dtype == "auto"
    results = evaluate(*train_run(config, workdir), workdir)
    assert json.loads((workdir / "config.json").read_text())["dtype"] == "float32"
    assert evaluate_run(config, workdir, tmp_path / "again")[0] == results
    # As if it had been started on a GPU.
    shutil.rmtree(workdir / FOLDER)
    begun = with_dtype(config, workdir)
    begun.dtype = "bfloat16"
    save_config(begun, workdir)
    assert with_dtype(config, workdir).dtype == "bfloat16"


def test_what_follows_a_step_that_was_left_out(config, clip):
    """The rate is the reported one; an update too large for float32 is left out as well."""
    experiment = experiments.prepare(config, clip)
    # Warm-up is over after the first step.
    schedule = Schedule(0.01, 0.002, 1, 2, steps_per_epoch=1)
    optimizer, step = make_optimizer(), StepConfig(0.3, skip=True)
    take_step = make_step(experiment.model, optimizer, step)
    image = np.random.default_rng(0).integers(0, 256, (1, 6, 32, 32, 3), np.uint8)
    label, weight = np.arange(6, dtype=np.int32)[None], np.ones((1, 6), np.float32)
    batch = {"image": image, "label": label, "weight": weight}
    broken = {**batch, "weight": np.nan * weight}
    prompts = adoption.initial_prompts(experiment)

    def after(*batches, schedule=schedule, momentum=0.0):
        state = new_state(experiment.model, step, prompts, optimizer)
        pushed = jax.tree.map(lambda x: np.full_like(x, momentum), state.opt_state)
        state = distributed.replicate(state._replace(opt_state=pushed))
        for one in batches:
            numbers = distributed.replicate(schedule.as_arrays())
            state = take_step(state, experiment.pretrained.params, experiment.texts, one, numbers)
        return distributed.to_host(state)

    first, second = after(batch), after(broken, batch)
    assert (second.step, *second.not_finite) == (2, 1, 1)
    moved = [s.prompts["text"]["context"] - prompts["text"]["context"] for s in (first, second)]
    rates = [float(learning_rates(schedule, step)["text"]) for step in (0, 1)]
    ratio = np.linalg.norm(moved[1]) / np.linalg.norm(moved[0])
    assert ratio == pytest.approx(rates[1] / rates[0], rel=0.02)
    # Loss and gradient are finite, and rate times momentum is not.
    fast = Schedule(100.0, 100.0, 0, 2, steps_per_epoch=1)
    pushed = after(batch, batch, schedule=fast, momentum=3e38)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(pushed.prompts))
    assert pushed.not_finite.steps == 1


TEMPLATES = ("a photo of a {}.", "a {} in a video game.")


@pytest.fixture(scope="module")
def experiment(clip_dir, clip):
    """Three epochs of two steps, the last of which counts least."""
    config = small_config(clip_dir, coop, train__epochs=3, train__batch_size=6)
    config.text_prompt.length = 4
    config.train.average_mean, config.train.average_deviation = 1.0, 1.0
    config.checkpoint.every_steps, config.checkpoint.keep = 1, 10
    return experiments.prepare(config, clip)


@pytest.fixture(scope="module")
def finished(experiment, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    return workdir, loop.train(experiment, workdir)


def test_a_run_that_goes_on_has_the_same_bits(experiment, finished, tmp_path):
    """The average of its epochs too, which it ends with, if stopped within an epoch."""
    workdir, prompts = finished
    shutil.copytree(workdir, tmp_path / "run")
    for later in (4, 5, 6):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(later))
    again = loop.train(experiment, tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, again, prompts)


def test_an_average_over_other_epochs_is_refused(experiment, finished, tmp_path):
    config = experiment.config.copy_and_resolve_references()
    config.train.epochs = 4
    with pytest.raises(UserError, match="averages its prompts over 3 epochs"):
        loop.train(experiment._replace(config=config), finished[0], allow_changes=True)
    # The three steps would be three epochs, so two of the weights would never be added.
    config.train.epochs, config.train.batch_size = 3, 12
    shutil.copytree(finished[0], tmp_path / "run")
    for step in (4, 5, 6):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
    with pytest.raises(UserError, match=r"3 epochs of 2 steps, not over 3 of 1"):
        loop.train(experiment._replace(config=config), tmp_path / "run", allow_changes=True)


def test_texts_to_hold_to_are_the_mean_of_what_comes_out(clip_dir, clip):
    """As published, not normalised before the mean, unlike the ensemble of zero-shot CLIP."""
    config = small_config(clip_dir, promptsrc, loss__template="|".join(TEMPLATES))
    config.text_prompt.depth = config.visual_prompt.depth = 2
    experiment = experiments.prepare(config, clip)
    each = []
    for template in TEMPLATES:
        texts = [template.format(name) for name in experiment.dataset.classnames]
        each.append(frozen_features(experiment.model, clip.params, texts, clip.tokenizer))
    found = distributed.to_host(consistency_target(experiment))
    np.testing.assert_allclose(found, sum(each) / 2, rtol=1e-4, atol=1e-5)
    assert np.abs(normalize(found) - normalize(sum(map(normalize, each)))).max() > 1e-4
