"""A run that ends with the average of its epochs, and the texts that PromptSRC is held to."""

import shutil

import jax
import numpy as np
import pytest

from configs import coop, promptsrc
from dpt_jax import distributed
from dpt_jax.clip.model import normalize
from dpt_jax.errors import UserError
from dpt_jax.training import loop
from dpt_jax.training import setup as experiments
from dpt_jax.training.checkpoints import Checkpoints
from dpt_jax.training.optimizer import epoch_weights
from dpt_jax.training.setup import consistency_target
from tests.helpers.configs import small_config
from tests.helpers.models import frozen_features

pytestmark = pytest.mark.compiles

TEMPLATES = ("a photo of a {}.", "a {} in a video game.")


@pytest.fixture(scope="module")
def experiment(clip_dir, clip):
    """Three epochs of two steps, the last of which counts least."""
    config = small_config(clip_dir, coop, train__epochs=3, train__batch_size=6)
    config.train.average_mean, config.train.average_deviation = 1.0, 1.0
    config.checkpoint.every_steps, config.checkpoint.keep = 1, 10
    return experiments.prepare(config, clip)


@pytest.fixture(scope="module")
def finished(experiment, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    return workdir, loop.train(experiment, workdir)


def prompts_of(workdir, step):
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.load(step).prompts


def test_a_run_ends_with_the_average_of_its_epochs(experiment, finished):
    """θ_3 is not saved, but follows from the average: it is where the second step of it leads to,
    near the step before.
    """
    workdir, prompts = finished
    w = epoch_weights(3, 1.0, 1.0)
    before = [prompts_of(workdir, step) for step in (2, 4, 5)]

    def nearly(found, one, two, three):
        expected = w[0] * one + w[1] * two + w[2] * three
        # The last step, which is the shortest, has a weight of 0.08.
        return np.abs(found - expected).max() < 0.1 * np.abs(two - one).max()

    assert all(jax.tree.leaves(jax.tree.map(nearly, prompts, *before)))
    saved = prompts_of(workdir, 6)
    jax.tree.map(np.testing.assert_array_equal, prompts, saved)


def test_a_run_that_goes_on_has_the_same_bits(experiment, finished, tmp_path):
    """Its average too, within an epoch."""
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
    # Its three steps would be three epochs, and two of the weights would never be added.
    config.train.epochs, config.train.batch_size = 3, 12
    shutil.copytree(finished[0], tmp_path / "run")
    for step in (4, 5, 6):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
    with pytest.raises(UserError, match=r"had 2 steps and has 1 now.*it averages its epochs"):
        loop.train(experiment._replace(config=config), tmp_path / "run", allow_changes=True)


def test_texts_to_hold_to_are_the_mean_of_what_comes_out(clip_dir, clip):
    """As published, not normalised before the mean, as the ensemble of zero-shot CLIP is."""
    own = {
        "text_prompt__depth": 2,
        "visual_prompt__depth": 2,
        "loss__template": "|".join(TEMPLATES),
    }
    experiment = experiments.prepare(small_config(clip_dir, promptsrc, **own), clip)
    names = experiment.dataset.classnames
    each = [
        frozen_features(
            experiment.model, clip.params, [template.format(n) for n in names], clip.tokenizer
        )
        for template in TEMPLATES
    ]
    found = distributed.to_host(consistency_target(experiment))
    np.testing.assert_allclose(found, sum(each) / 2, rtol=1e-4, atol=1e-5)
    assert np.abs(normalize(found) - normalize(sum(map(normalize, each)))).max() > 1e-4
