"""The linear probe: fitted to shots, chosen on validation images, and reported like a method."""

import json

import numpy as np
import pytest

from tests.helpers.commands import assert_refused, command_refused, in_process
from tests.helpers.configs import small_flags, small_splits
from tests.helpers.golden import IMAGES

pytestmark = pytest.mark.compiles


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
    results = json.loads((tmp_path / "run" / "results.json").read_text())
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
