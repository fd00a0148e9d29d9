"""The second stage of training, and its classifier on other classes."""

import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dpt_jax
from dpt_jax.clip.model import normalize
from dpt_jax.config import method_config
from dpt_jax.logging import Progress
from dpt_jax.prompts.classifiers import CLASSIFIERS, ClassTexts, Support, for_classes
from dpt_jax.training.checkpoints import load_newest
from dpt_jax.training.classifier import fit
from dpt_jax.training.state import EXIT_CODE
from tests.helpers.commands import command_refused, in_process
from tests.helpers.configs import results_of, small_flags

pytestmark = pytest.mark.compiles


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_new_classes_fall_back_to_their_texts(name):
    """Trained classes keep their parameters, wherever they are in the list of names."""
    keys = jax.random.split(jax.random.key(0), 4)
    raw = jax.random.normal(keys[0], (5, 16))
    support = Support(jax.random.normal(keys[1], (2, 6, 16)), jnp.arange(6) % 3)
    settings = method_config(name.partition("_plus")[0].partition("_conf")[0]).classifier
    classifier = CLASSIFIERS[name]

    def texts(rows):
        return ClassTexts(normalize(raw[jnp.array(rows)]), raw[jnp.array(rows)], jnp.float32(50.0))

    params = classifier.start(support, texts([0, 1, 2]), keys[2], settings)
    params = {key: np.asarray(x) + (key in classifier.learned) for key, x in params.items()}
    images = normalize(jax.random.normal(keys[3], (4, 16)))
    trained = classifier.logits(params, images, texts([0, 1, 2]))
    other = for_classes(classifier, params, np.array([-1, 2, 0, -1]))
    found = classifier.logits(other, images, texts([3, 2, 0, 4]))
    np.testing.assert_allclose(found[:, 1:3], trained[:, [2, 0]], rtol=1e-5)
    if name != "clip_adapter":  # which changes the images of all classes
        zero_shot = 50.0 * images @ texts([3, 4]).unit.T
        np.testing.assert_allclose(found[:, [0, 3]], zero_shot, rtol=1e-4, atol=1e-4)


def test_resumes_at_the_second_stage(tiny_clip_dir, tmp_path, monkeypatch, capsys):
    """A run that was stopped between the stages ends with the same bits.

    So does one that is stopped while the second stage encodes features.
    """
    run = tmp_path / "run"
    own = {"train__epochs": 1, "train__batch_size": 18, "classifier__views": 3}
    command = ["main.py", "--config=dpt_clap:folder", f"--workdir={run}"]
    command += small_flags(tiny_clip_dir, **own)
    in_process(*command)
    of = results_of(run)["of"]
    metrics = (run / "metrics.jsonl").read_text()
    shutil.rmtree(run / "checkpoints" / str(of["step"]))
    (run / "results.json").unlink()
    command_refused(run, "main.py", "--mode=eval", f"--workdir={run}")  # there is no classifier yet
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "advance", lambda _: signal.raise_signal(signal.SIGTERM))
        assert in_process(*command, check=False).returncode == EXIT_CODE
    assert not (run / "results.json").exists()
    in_process(*command)
    again = results_of(run)["of"]
    assert again["prompts"] == of["prompts"]
    assert (run / "metrics.jsonl").read_text() == metrics

    # Learned parameters are those of the training, and λ is not learned.
    in_process("main.py", "--mode=eval", f"--workdir={run}", "--config.dataset.classes=new")
    folders, prompts = (run, run / "on" / "folder-new"), load_newest(run).prompts
    own, new_classes = (results_of(f) for f in folders)
    sizes = [x.size for x in jax.tree.leaves(prompts)]
    assert own["parameters"] == sum(sizes) - prompts["classifier"]["penalty"].size
    assert new_classes["parameters"] == own["parameters"]
    assert own["of"]["settings"]["dataset.natural"] is False  # so that a report distinguishes them

    new = dpt_jax.load(run, classnames=["airplane", "zebra"])
    assert new.predict_proba(np.zeros((1, 40, 40, 3), np.uint8)).shape == (1, 2)
    assert "1 of these 2 classes, such as 'zebra'" in capsys.readouterr().err
    command_refused("classifier.lr", *command, "--config.classifier.lr=0.2")


def test_settings_chosen_by_the_support(capsys):
    """The best of the grid on one image of each class; then all images are trained on."""
    keys = jax.random.split(jax.random.key(1), 2)
    raw = jax.random.normal(keys[0], (3, 16))
    labels = jnp.arange(12) % 3
    views = raw[labels] + jax.random.normal(keys[1], (1, 12, 16))
    texts = ClassTexts(normalize(raw), raw, jnp.float32(20.0))
    config = method_config("tip_adapter")
    config.classifier.select = "support"
    params, _, chosen = fit(config, Support(views, labels), texts)
    assert len(params["keys"]) == 12
    alpha, beta = (float(params[key]) for key in ("alpha", "beta"))
    grid = CLASSIFIERS["tip_adapter"].grid
    assert any(alpha == pytest.approx(x) for x in grid["alpha"])
    assert any(beta == pytest.approx(x) for x in grid["beta"])
    assert chosen == pytest.approx({"classifier.alpha": alpha, "classifier.beta": beta})
    assert f"classifier.alpha={alpha:g}, classifier.beta={beta:g}" in capsys.readouterr().out
