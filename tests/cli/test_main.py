"""The commands as a user runs them, on small real images, also with all files in a bucket."""

import json

import numpy as np
import pytest

import dpt_jax
from dpt_jax.io import as_path, find_files
from dpt_jax.training.checkpoints import load_newest
from tests.helpers.commands import command, in_process
from tests.helpers.configs import IMAGES, small_flags
from tests.helpers.golden import SMALL, assert_close_in_norm, relative_error
from tests.helpers.object_store import put_folder
from tests.helpers.runs import results_of

pytestmark = pytest.mark.compiles

CASE = json.loads((SMALL / "case.json").read_text())
LOGITS = 1e-4


@pytest.fixture(scope="module")
def flags(clip_dir):
    own = {"dataset__shots": -1, "dataset__template": CASE["template"]}
    own |= {"train__augment": False, "eval__save_logits": True}
    own |= {"cavpt__top_k": CASE["top_k"], "loss__guidance_epochs": CASE["guidance_epochs"]}
    own |= {"train__epochs": CASE["epochs_run"], "train__batch_size": CASE["batch"]}
    own |= {f"train__{key}": CASE[key] for key in ("visual_lr", "warmup_epochs")}
    return ["--config=configs/dpt.py:folder", *small_flags(clip_dir, **own)]


@pytest.fixture(scope="module")
def converted(flags, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "converted"
    in_process("convert", "reference", SMALL / "checkpoint", f"--workdir={workdir}", *flags)
    return workdir


def predictions(workdir):
    return np.load(workdir / "predictions.npz")


def test_published_checkpoint_evaluates(converted):
    in_process("main.py", "--config=configs/dpt.py:folder", "--mode=eval", f"--workdir={converted}")
    expected, found = np.load(SMALL / "expected.npz"), predictions(converted)
    assert relative_error(found["logits"], expected["initial_test_logits"]) < LOGITS
    np.testing.assert_array_equal(found["path"], expected["paths"])
    np.testing.assert_array_equal(found["label"], expected["labels"])
    assert list(found["classnames"]) == CASE["classnames"]
    results = results_of(converted)
    assert results["n"] == 18
    right = expected["initial_test_logits"].argmax(1) == expected["labels"]
    assert results["accuracy"] == pytest.approx(right.mean(), abs=1e-6)


def test_zero_shot(flags, tmp_path):
    in_process("main.py", *flags, "--config.method=zeroshot", f"--workdir={tmp_path / 'run'}")
    expected = np.load(SMALL / "expected.npz")["zeroshot_test_logits"]
    assert relative_error(predictions(tmp_path / "run")["logits"], expected) < LOGITS


@pytest.fixture(scope="module")
def trained_on(converted, flags, tmp_path_factory):
    """The workdir of a training from the published checkpoint, and its flags."""
    workdir = tmp_path_factory.mktemp("runs") / "trained"
    flags = [*flags, f"--config.init_from={converted}"]
    in_process("main.py", *flags, f"--workdir={workdir}")
    return workdir, flags


def assert_published(run):
    """The losses and the final logits are those of the published code."""
    expected = np.load(SMALL / "expected.npz")
    assert relative_error(predictions(run)["logits"], expected["final_test_logits"]) < LOGITS
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(losses, expected["losses"], rtol=1e-4)


def test_training_from_published_checkpoint(trained_on):
    run, _ = trained_on
    assert_published(run)
    assert len((run / "train_files.txt").read_text().splitlines()) == 12


# Train without modules that take seconds to import, and predict in two batches.
ON_DEVICES = """
import sys
import numpy as np
import dpt_jax
from dpt_jax import cli
workdir, *arguments = sys.argv[1:]
files, arguments = arguments[:11], arguments[11:]
cli.main_py([*arguments, f"--workdir={workdir}"])
heavy = {"torch", "tensorflow", "tensorflow_datasets", "matplotlib", "gcsfs"}
assert not heavy & {*sys.modules}
predictor = dpt_jax.load(workdir, batch_size=2)
assert predictor.rows == 10
np.save(f"{workdir}/answers.npy", predictor.predict_proba(files))
"""


@pytest.mark.process
def test_any_number_of_devices_trains_and_predicts_the_same(trained_on, files, tmp_path):
    """Five devices, which do not divide the twelve rows of a batch."""
    one, flags = trained_on
    command("-c", ON_DEVICES, str(tmp_path), *files[:11], *flags, devices=5)
    assert_published(tmp_path)
    assert_close_in_norm(load_newest(tmp_path).prompts, load_newest(one).prompts, 1e-5)
    expected = dpt_jax.load(one).predict_proba(files[:11])
    np.testing.assert_allclose(np.load(tmp_path / "answers.npy"), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.process
@pytest.mark.slow
def test_a_second_start_compiles_nothing(tiny_clip_dir, tmp_path):
    """It adds no program to those of the first one, in a cache that JAX fills by itself."""
    options = ["--config=coop:folder", *small_flags(tiny_clip_dir, train__epochs=1)]
    # Without the tests' own cache and threshold, as for a user.
    without = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    compiled = []
    for run in ("first", "second"):
        command("main.py", *options, f"--workdir={tmp_path / run}", without=without,
                XDG_CACHE_HOME=str(tmp_path / "cache"))  # fmt: skip
        compiled.append({file.name for file in (tmp_path / "cache").rglob("*-cache")})
    assert len(compiled[0]) >= 5
    assert compiled[0] == compiled[1]


@pytest.mark.process
def test_everything_in_a_bucket(tiny_clip_dir, bucket):
    put_folder(IMAGES, f"{bucket}/images")
    there = as_path(bucket)
    data = small_flags(tiny_clip_dir, dataset__root=f"{bucket}/images")
    sizes = ["--config.text_prompt.length=4", "--config.train.batch_size=6"]
    in_process("sweep", "--methods=coop", "--datasets=folder", "--shots=2", "--seeds=1",
               f"--runs={bucket}/runs", *data, *sizes, "--config.train.epochs=1")  # fmt: skip
    (results,) = find_files(there, "results.json")
    run = f"{results.parent}"
    in_process("report", f"{bucket}/runs")
    assert (there / "runs" / "report.md").is_file()
    in_process("convert", "export", run, f"{bucket}/a.safetensors")
    in_process("predict", run, f"{bucket}/images/test", f"--csv={bucket}/answers.csv")
    assert (there / "answers.csv").read_text().count("\n") == 19
    image = next((there / "images" / "test" / "airplane").iterdir())
    in_process("visualize", run, image)
    assert list((results.parent / "pictures").iterdir())
    in_process("main.py", "--config=configs/coop.py:folder", *data, "--mode=eval",
               f"--config.init_from={bucket}/a.safetensors")  # fmt: skip
    assert (there / "a" / "on" / "folder" / "results.json").is_file()
