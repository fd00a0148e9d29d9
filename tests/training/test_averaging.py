"""A run of PromptSRC, which is held to plain CLIP and ends with the average of its epochs."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import promptsrc
from dpt_jax import distributed
from dpt_jax.clip.model import normalize
from dpt_jax.errors import UserError
from dpt_jax.model import Outputs, ZeroShot
from dpt_jax.prompts.config import Consistency, PromptConfig
from dpt_jax.training import loop
from dpt_jax.training import setup as experiments
from dpt_jax.training.checkpoints import Checkpoints
from dpt_jax.training.losses import Rows, count, losses
from dpt_jax.training.optimizer import epoch_weights
from dpt_jax.training.texts import consistency_target
from tests.helpers.configs import small_config
from tests.helpers.models import frozen_features

TEMPLATES = ("a photo of a {}.", "a {} in a video game.")


@pytest.fixture(scope="module")
def experiment(clip_dir, clip):
    """Three epochs of two steps, the last of which counts least."""
    config = small_config(clip_dir, promptsrc)
    config.text_prompt.depth = config.visual_prompt.depth = 2
    config.train.epochs, config.train.batch_size, config.loss.template = 3, 6, "|".join(TEMPLATES)
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


@pytest.mark.compiles
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


@pytest.mark.compiles
@pytest.mark.parametrize("step", [3, 4])
def test_a_run_that_goes_on_has_the_same_bits(experiment, finished, tmp_path, step):
    """Its average too, within an epoch and between two."""
    workdir, prompts = finished
    shutil.copytree(workdir, tmp_path / "run")
    for later in range(step + 1, 7):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(later))
    again = loop.train(experiment, tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, again, prompts)


@pytest.mark.compiles
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


@pytest.mark.compiles
def test_texts_to_hold_to_are_the_mean_of_what_comes_out(experiment, clip):
    """As published, not normalised before the mean, as the ensemble of zero-shot CLIP is."""
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


def outputs_of(seed, rows):
    """Random outputs for `rows` images of 4 classes, with targets of the consistency losses."""
    draw = np.random.default_rng(seed).standard_normal
    logits = np.float32(draw((rows, 4)))
    texts, target_texts = (normalize(jnp.asarray(draw((4, 8)))) for _ in range(2))
    features, frozen = np.float32(draw((rows, 8))), np.float32(draw((rows, 8)))
    target_logits = np.float32(draw((rows, 4)))
    return Outputs(
        *[logits] * 3,
        features,
        texts,
        ZeroShot(frozen, logits, None, None),
        target_texts=target_texts,
        target_logits=target_logits,
    )


def part_of(outputs, rows):
    zero_shot = outputs.zero_shot._replace(features=outputs.zero_shot.features[rows])
    own = {name: getattr(outputs, name)[rows] for name in ("logits", "features", "target_logits")}
    return outputs._replace(zero_shot=zero_shot, **own)


@pytest.mark.parametrize("kind", ["l1", "cosine"])
def test_consistency_is_the_published_formula_whatever_the_padding_and_the_parts(kind):
    config = PromptConfig(4, consistency=Consistency(25.0, kind, 10.0, 3.0))
    terms = losses(config, alpha=0.0, guidance=False)
    whole, padding = outputs_of(0, 7), np.array([1, 1, 1, 0, 1, 0, 1], np.float32)
    counts = count(None, Rows(np.zeros(7, int), padding), 0)
    real = part_of(whole, padding > 0)
    q, p = (jax.nn.softmax(x, axis=-1) for x in (real.target_logits, real.logits))
    texts = {
        "l1": np.abs(real.learned_texts - real.target_texts).mean(),
        "cosine": 1 - (real.learned_texts * real.target_texts).sum(-1).mean(),
    }[kind]
    expected = {
        "text_consistency": 25 * texts,
        "image_consistency": 10 * np.abs(real.features - real.zero_shot.features).mean(),
        "logit_consistency": 3 * (q * (np.log(q) - np.log(p))).sum() / q.size,
    }
    assert set(terms) == {"logits", *expected}
    for name, value in expected.items():
        found = sum(
            terms[name](
                part_of(whole, rows), Rows(np.zeros(7, int)[rows], padding[rows]), counts, False
            )
            for rows in (slice(None, 3), slice(3, None))
        )
        assert float(found) == pytest.approx(float(value), rel=1e-5), name
