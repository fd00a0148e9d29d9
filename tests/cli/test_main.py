"""The commands as a user runs them, on small real images."""

import json
import shutil

import jax
import numpy as np
import pytest

from dpt_jax.training.checkpoints import load_newest
from tests.helpers.commands import assert_refused, command, in_process
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


@pytest.mark.process
def test_any_number_of_devices_trains_to_the_same_prompts(flags, tmp_path):
    """Also with 5 rows a batch, which 4 devices do not divide."""
    options = ["--config.train.batch_size=5", "--config.train.epochs=2"]
    options += ["--config.train.warmup_epochs=0"]
    one, four = tmp_path / "1", tmp_path / "4"
    in_process("main.py", *flags, *options, f"--workdir={one}")
    command("main.py", *flags, *options, f"--workdir={four}", devices=4)
    for a, b in zip(prompts_of(four), prompts_of(one), strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)


def test_stopped_after_any_checkpoint_it_ends_bit_identical(flags, tmp_path):
    """Six steps of two an epoch, with augmentation; every checkpoint is gone on from."""
    options = [
        *flags,
        "--config.train.batch_size=6",
        "--config.train.epochs=3",
        "--config.train.augment=True",
        "--config.checkpoint.every_steps=1",
        "--config.checkpoint.keep=9",
    ]
    whole = tmp_path / "whole"
    in_process("main.py", *options, f"--workdir={whole}")
    expected, metrics = prompts_of(whole), (whole / "metrics.jsonl").read_text().splitlines()
    for step in (2, 3):  # between two epochs, and within one
        stopped = tmp_path / f"stopped{step}"
        shutil.copytree(whole, stopped)
        for later in range(step + 1, 7):
            shutil.rmtree(stopped / "checkpoints" / str(later))
        done = in_process("main.py", *options, f"--workdir={stopped}")
        assert f"resuming at step {step} of 6" in done.stdout
        for a, b in zip(prompts_of(stopped), expected, strict=True):
            np.testing.assert_array_equal(a, b)
        again = [
            json.loads(line)["loss"]
            for line in (stopped / "metrics.jsonl").read_text().splitlines()
        ]
        assert again == [json.loads(line)["loss"] for line in metrics]
    assert "training is finished" in in_process("main.py", *options, f"--workdir={whole}").stdout


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--config.dataset.root=/nowhere"], "/nowhere"),
        (["--config.clip.weights=/nowhere"], "/nowhere"),
        (["--config=configs/nothing.py:emoji"], "configs/nothing.py"),
        (["--workdir=main.py"], "main.py"),
        (["--mode=eval"], "run"),
    ],
)
def test_wrong_input_is_one_sentence_and_writes_nothing(flags, tmp_path, arguments, names):
    workdir = f"--workdir={tmp_path / 'run'}"
    assert_refused(in_process("main.py", *flags, workdir, *arguments, check=False), names)
    assert not (tmp_path / "run").exists()
