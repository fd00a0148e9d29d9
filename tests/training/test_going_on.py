"""What a run goes on with: its own images, steps, dtype and optimizer, or a sentence."""

import json
import shutil

import jax
import numpy as np
import pytest

from configs import coop
from dpt_jax import distributed
from dpt_jax.errors import UserError
from dpt_jax.evaluation.evaluate import evaluate
from dpt_jax.runs.run import evaluate_run, train_run, with_dtype
from dpt_jax.training import initial_prompts as adoption
from dpt_jax.training import loop
from dpt_jax.training import setup as experiments
from dpt_jax.training.checkpoints import load_newest
from dpt_jax.training.optimizer import Schedule, learning_rates, make_optimizer
from dpt_jax.training.step import StepConfig, make_step, new_state
from dpt_jax.training.workdir import save_config
from tests.helpers.configs import small_config
from tests.helpers.golden import SMALL

pytestmark = pytest.mark.compiles


@pytest.fixture
def images(tmp_path):
    root = tmp_path / "images"
    shutil.copytree(SMALL / "images", root)
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
    for epochs in (1, 2):  # a finished run that would only be evaluated, and one that would go on
        config.train.epochs = epochs
        with pytest.raises(UserError, match=r"12 before, 18 now; 6 new, such as .*one_more\.png"):
            train(config, clip, started)
        assert (started / "train_files.txt").read_text() == listed
    capsys.readouterr()
    train(config, clip, started, allow_changes=True)
    said = capsys.readouterr().out
    assert "resuming with other images than it was trained on (12 before, 18 now" in said
    assert "an epoch had 2 steps and has 3 now, so its 2 steps count as 0.7 epochs" in said
    assert len((started / "train_files.txt").read_text().splitlines()) == 18
    # The steps of two epochs are not taken for those of three.
    config.train.epochs, config.train.batch_size = 3, 9
    with pytest.raises(UserError, match=r"count as 3\.0 epochs instead of 2\.0, and it would"):
        train(config, clip, started, allow_changes=True)


def test_another_clip_of_the_same_sizes_is_refused(config, clip, started):
    """Where the weights lie may change freely, so the settings alone do not tell."""
    config.train.epochs = 2
    other = jax.tree.map(lambda x: x * np.float32(1.1), clip.params)
    with pytest.raises(UserError, match="run was trained on another CLIP"):
        train(config, clip._replace(params=other, digest="other"), started, allow_changes=True)
    assert load_newest(started).step == 2


def test_a_state_of_another_optimizer_is_refused(config, clip, started):
    config.train.epochs, config.train.optimizer = 2, "adamw"
    with pytest.raises(UserError, match=rf"{started}: momentum\.count"):
        train(config, clip, started, allow_changes=True)


def test_a_run_past_its_end_is_refused(config, clip, started):
    config.train.epochs = 2
    train(config, clip, started)
    config.train.epochs = 1
    with pytest.raises(
        UserError, match="was trained for 4 steps, but these settings end at step 2"
    ):
        train(config, clip, started)
    assert load_newest(started).step == 4


def test_the_dtype_that_is_computed_in_is_saved_and_kept(config, tmp_path):
    workdir = tmp_path / "run"
    assert config.dtype == "auto"
    results = evaluate(*train_run(config, workdir), workdir)
    assert json.loads((workdir / "config.json").read_text())["dtype"] == "float32"
    assert evaluate_run(config, workdir, tmp_path / "again")[0] == results
    # As if it had been started on a GPU.
    begun = with_dtype(config, workdir)
    begun.dtype = "bfloat16"
    save_config(begun, workdir)
    assert with_dtype(config, workdir).dtype == "bfloat16"


def test_what_follows_a_step_that_was_left_out(config, clip):
    """The rate is the reported one; an update too large for float32 is left out as well."""
    experiment = experiments.prepare(config, clip)
    # Warm-up is over after the first step.
    schedule = Schedule(0.01, 0.002, 1, 2, steps_per_epoch=1)
    optimizer = make_optimizer()
    step = StepConfig(0.3, skip=True)
    take_step = make_step(experiment.model, optimizer, step)
    size = experiment.model.clip_config.image_size
    generator = np.random.default_rng(0)
    batch = {
        "image": generator.integers(0, 256, (1, 6, size, size, 3), np.uint8),
        "label": np.arange(6, dtype=np.int32)[None],
        "weight": np.ones((1, 6), np.float32),
    }
    broken = {**batch, "weight": np.full((1, 6), np.nan, np.float32)}
    prompts = adoption.initial_prompts(experiment)

    def after(*batches, schedule=schedule, momentum=0.0):
        state = new_state(experiment.model, step, prompts, optimizer)
        pushed = jax.tree.map(lambda x: np.full_like(x, momentum), state.opt_state)
        state = distributed.replicate(state._replace(opt_state=pushed))
        for one in batches:
            numbers = distributed.replicate(schedule.as_arrays())
            state = take_step(state, experiment.frozen, one, numbers)
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
