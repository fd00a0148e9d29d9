"""The commands as a user runs them, on small real images."""

import json

import jax
import numpy as np
import pytest

import dpt_jax
from dpt_jax.training.checkpoints import load_newest
from tests.helpers.commands import command, in_process
from tests.helpers.golden import SMALL, relative_error

pytestmark = pytest.mark.compiles

CASE = json.loads((SMALL / "case.json").read_text())
LOGITS = 1e-4


@pytest.fixture(scope="module")
def flags(clip_dir):
    return [
        "--config=configs/dpt.py:folder",
        f"--config.clip.weights={clip_dir}",
        f"--config.dataset.root={SMALL / 'images'}",
        f"--config.dataset.template={CASE['template']}",
        "--config.dataset.shots=-1",
        f"--config.cavpt.top_k={CASE['top_k']}",
        f"--config.loss.guidance_epochs={CASE['guidance_epochs']}",
        f"--config.train.visual_lr={CASE['visual_lr']}",
        f"--config.train.epochs={CASE['epochs_run']}",
        f"--config.train.warmup_epochs={CASE['warmup_epochs']}",
        f"--config.train.batch_size={CASE['batch']}",
        "--config.train.augment=False",
        "--config.eval.save_logits=True",
    ]


@pytest.fixture(scope="module")
def converted(flags, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "converted"
    in_process(
        "-m",
        "dpt_jax",
        "convert",
        "reference",
        str(SMALL / "checkpoint"),
        f"--workdir={workdir}",
        *flags,
    )
    return workdir


def predictions(workdir):
    return np.load(workdir / "predictions.npz")


def prompts_of(workdir):
    return jax.tree.leaves(load_newest(workdir).prompts)


def test_published_checkpoint_evaluates(converted):
    in_process("main.py", "--config=configs/dpt.py:folder", "--mode=eval", f"--workdir={converted}")
    expected, found = np.load(SMALL / "expected.npz"), predictions(converted)
    assert relative_error(found["logits"], expected["initial_test_logits"]) < LOGITS
    np.testing.assert_array_equal(found["path"], expected["paths"])
    np.testing.assert_array_equal(found["label"], expected["labels"])
    assert list(found["classnames"]) == CASE["classnames"]
    results = json.loads((converted / "results.json").read_text())
    assert results["n"] == 18
    assert results["accuracy"] == pytest.approx(
        (expected["initial_test_logits"].argmax(1) == expected["labels"]).mean(), abs=1e-6
    )


def test_zero_shot(flags, tmp_path):
    in_process("main.py", *flags, "--config.method=zeroshot", f"--workdir={tmp_path / 'run'}")
    expected = np.load(SMALL / "expected.npz")["zeroshot_test_logits"]
    assert relative_error(predictions(tmp_path / "run")["logits"], expected) < LOGITS


def test_training_from_published_checkpoint(converted, flags, tmp_path):
    """One batch an epoch, no augmentation: the losses and final logits of the published code.

    Stopped half-way (as a run with fewer epochs) and on two devices it is the same run.
    """
    expected = np.load(SMALL / "expected.npz")
    run = tmp_path / "run"
    in_process("main.py", *flags, f"--config.init_from={converted}", f"--workdir={run}")
    assert relative_error(predictions(run)["logits"], expected["final_test_logits"]) < LOGITS
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(losses, expected["losses"], rtol=1e-4)
    assert len((run / "train_files.txt").read_text().splitlines()) == 12


# Trains, and answers what it is given with two batches at a time.
ON_DEVICES = """
import sys
import numpy as np
import dpt_jax
from dpt_jax import cli
workdir, *arguments = sys.argv[1:]
files, arguments = arguments[:9], arguments[9:]
cli.main_py([*arguments, f"--workdir={workdir}"])
predictor = dpt_jax.load(workdir, batch_size=2)
assert predictor.rows == 8
np.save(f"{workdir}/answers.npy", predictor.predict_proba(files))
"""


@pytest.mark.process
def test_any_number_of_devices_trains_and_predicts_the_same(flags, files, tmp_path):
    """Also with 5 rows a batch, which 4 devices do not divide."""
    options = ["--config.train.batch_size=5", "--config.train.epochs=2"]
    options += ["--config.train.warmup_epochs=0"]
    one, four = tmp_path / "1", tmp_path / "4"
    in_process("main.py", *flags, *options, f"--workdir={one}")
    command("-c", ON_DEVICES, str(four), *files[:9], *flags, *options, devices=4)
    for a, b in zip(prompts_of(four), prompts_of(one), strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)
    assert relative_error(predictions(four)["logits"], predictions(one)["logits"]) < LOGITS
    expected = dpt_jax.load(one).predict_proba(files[:9])
    np.testing.assert_allclose(np.load(four / "answers.npy"), expected, rtol=1e-3, atol=1e-5)
