"""Evaluation: images, caches, a linear probe, and results, which are of the newest prompts."""

import dataclasses
import shutil

import numpy as np
import pytest
from PIL import Image

import dpt_jax
from configs import coop, vpt
from dpt_jax.data import records
from dpt_jax.evaluation import evaluate as evaluation
from dpt_jax.evaluation.evaluate import evaluate
from dpt_jax.evaluation.results import calibration, class_scores, distinct, finished, read_current
from dpt_jax.report.one_run import report_run
from dpt_jax.report.runs import report_folder
from dpt_jax.training import setup
from dpt_jax.training import setup as experiments
from dpt_jax.training.checkpoints import digest, load_newest, read_header
from dpt_jax.training.loop import train
from dpt_jax.training.saved import initial_prompts
from tests.helpers.commands import assert_refused, command_refused, in_process, refused
from tests.helpers.configs import IMAGES, small_config, small_flags, small_splits
from tests.helpers.runs import results_of, save_run

pytestmark = pytest.mark.compiles


def test_training_and_evaluation_take_images_as_the_model_does(clip, clip_dir, tmp_path):
    """A model that squashes images gives the same as with images squashed before."""
    for image in IMAGES.rglob("*.png"):
        wide = Image.open(image).convert("RGB").resize((50, 34))
        name = image.relative_to(IMAGES)
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


def test_classes_without_test_images_are_refused(clip, clip_dir):
    prepared = experiments.prepare(small_config(clip_dir, coop), clip)
    refused("no test images.*dataset.classes", evaluation.predict, prepared, {}, examples=[])


@pytest.mark.parametrize("method", [coop, vpt])
def test_caches_of_features_and_images_change_no_bit(method, clip, clip_dir, tmp_path, monkeypatch):
    """And a file that was changed is another image, though its name is the same."""
    root = shutil.copytree(IMAGES, tmp_path / "images")
    monkeypatch.setattr(records, "cache", records.ImageCache())
    config = small_config(clip_dir, method, dataset__root=str(root))
    config.text_prompt.length = config.visual_prompt.length = 2
    config.dataset.shots, config.eval.batch_size = -1, 5
    features = {}

    def logits(features):
        prepared = experiments.prepare(config, clip)._replace(features=features)
        return evaluation.predict(prepared, initial_prompts(prepared)).logits

    first = logits({})
    for given in (features, features):
        np.testing.assert_array_equal(logits(given), first)
    Image.new("RGB", (9, 9), "red").save(next((root / "test").rglob("*.png")))
    changed = logits(features)
    assert (changed != first).any(-1).sum() == 1
    np.testing.assert_array_equal(changed, logits({}))


def test_the_image_cache_has_a_limit_and_caches_the_current_dataset():
    decoded = []

    def decode():
        decoded.append(1)
        return Image.new("RGB", (5, 5))

    cache = records.ImageCache(limit=300)  # three images of 100 bytes
    for _ in range(2):
        for key in "abcd":
            cache.get(key, "one dataset", decode)
    assert len(decoded) == 5  # a, b and c were cached, d was not
    for _ in range(2):
        for key in "xyza":
            cache.get(key, "another", decode)
    assert len(decoded) == 5 + 3 + 1 + 1


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
    results = results_of(tmp_path / "run")
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


@pytest.fixture(scope="module")
def config(clip_dir):
    config = small_config(clip_dir, coop, text_prompt__length=4, train__epochs=1)
    config.eval.save_logits = True
    return config


@pytest.fixture(scope="module")
def prepared(config, clip):
    return setup.prepare(config, clip)


@pytest.fixture(scope="module")
def evaluated(prepared, tmp_path_factory):
    """A run with results, and the same prompts tested as on another dataset."""
    workdir = tmp_path_factory.mktemp("runs") / "base"
    save_run(prepared, workdir)
    for folder in (workdir, workdir / "on" / "other"):
        evaluate(prepared, load_newest(workdir), folder)
    return workdir


@pytest.fixture
def run(evaluated, tmp_path):
    return shutil.copytree(evaluated, tmp_path / "runs" / "base")


def test_results_record_their_origin(run, prepared):
    results, saved = results_of(run), load_newest(run)
    assert (results["shots"], results["seed"]) == (16, 1)
    of = results["of"]
    assert (of["step"], of["prompts"]) == (1, saved.digest)
    assert of["template"] == prepared.config.dataset.template
    assert of["data"]["name"] == of["trained_on"]["name"] == "images"
    assert of["settings"]["train.text_lr"] == prepared.config.train.text_lr
    assert not {"seed", "dataset.root", "clip.weights"}.intersection(of["settings"])
    with np.load(run / "predictions.npz") as found:
        assert (int(found["step"]), str(found["prompts"])) == (1, saved.digest)


@pytest.mark.parametrize(
    "other", ["dataset.shots=2", "seed=3", "train.text_lr=0.9", "train.epochs=9", "method=kgcoop"]
)
def test_an_evaluation_cannot_relabel_prompts(run, other):
    before = [file.read_bytes() for file in (run / "results.json", run / "config.json")]
    flags = ["--mode=eval", f"--workdir={run}", f"--config.{other}"]
    command_refused(other.partition("=")[0], "main.py", *flags)
    assert [file.read_bytes() for file in (run / "results.json", run / "config.json")] == before


def test_other_folders_have_results_of_their_own(run, prepared, tmp_path):
    """The run's own results stay; two folders of one name are distinguished; all move together."""
    before = (run / "results.json").read_bytes()
    found = []
    for place in ("a", "b"):
        root = shutil.copytree(IMAGES, tmp_path / place / "images")
        if place == "b":
            next((root / "test").rglob("*.png")).unlink()
        else:
            (root / "test" / "airplane").rename(root / "test" / "aeroplane")
            (root / "train" / "airplane").rename(root / "train" / "aeroplane")
        in_process("main.py", "--mode=eval", f"--workdir={run}", f"--config.dataset.root={root}")
        found.append({file.parent.name for file in (run / "on").rglob("results.json")})
    assert found == [{"other", "folder"}, {"other", "folder", "folder-2"}]
    images = [results_of(run / "on" / name)["n"] for name in ("folder", "folder-2")]
    assert images[1] == images[0] - 1
    assert (run / "results.json").read_bytes() == before

    moved = run.rename(tmp_path / "moved")
    save_run(prepared, run, 2, 0.1)  # another run takes its place
    elsewhere, own = moved / "on" / "folder", load_newest(moved).digest
    assert digest(dpt_jax.load(elsewhere).prompts) == own
    in_process("main.py", "--mode=eval", f"--workdir={elsewhere}")
    assert results_of(elsewhere)["of"]["prompts"] == own


def test_all_readers_notice_results_of_older_prompts(run, prepared, config):
    """After more or new training: the run's own results, and those on other datasets."""
    elsewhere = run / "on" / "other"
    assert finished(run, config)
    assert finished(elsewhere, config)
    read_current(elsewhere)
    save_run(prepared, run, 2, 0.1)
    for folder in (run, elsewhere):
        assert not finished(folder, config)
        refused("step 1", report_run, folder)
    assert "| " not in report_folder(run.parent)[0]
    in_process("convert", "export", run, run / "prompts.safetensors")
    assert read_header(run / "prompts.safetensors")["results"] is None
    evaluate(prepared, load_newest(run), run)
    assert finished(run, config)
    assert read_current(run)["of"]["step"] == 2


def test_a_run_is_finished_with_the_results_that_are_asked_for(run, prepared, config):
    for key, value in (("train.epochs", 2), ("dataset.template", "{}"), ("dataset.classes", "new")):
        other = config.copy_and_resolve_references()
        other.update_from_flattened_dict({key: value})
        assert not finished(run, other)
    other = config.copy_and_resolve_references()
    other.eval.save_logits = False
    assert finished(run, other)
    evaluate(prepared._replace(config=other), load_newest(run), run)
    assert not (run / "predictions.npz").exists()
    assert not finished(run, config)


def test_calibration_by_hand():
    """Four answers: two of confidence 90 %, one of them right, and two of 60 %, both right."""
    logits = np.log([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    found = calibration(logits, np.array([0, 1, 0, 0]))
    assert [one["images"] for one in found["bins"]] == [2, 2]
    np.testing.assert_allclose([one["confidence"] for one in found["bins"]], [0.6, 0.9])
    np.testing.assert_allclose([one["accuracy"] for one in found["bins"]], [1, 0.5])
    assert found["ece"] == pytest.approx((2 * 0.4 + 2 * 0.4) / 4)
    certain = calibration(np.array([[1000.0, 0.0]]), np.array([0]))
    assert certain == {"ece": 0.0, "bins": [{"images": 1, "confidence": 1.0, "accuracy": 1.0}]}


def test_class_scores():
    scores = class_scores(np.array([0, 0, 1, 0]), np.array([0, 1, 1, 1]), ["a", "b", "c"])
    assert scores == {
        "a": {"n": 1, "accuracy": 1.0, "f1": 0.5, "predicted": {"a": 1}},
        "b": {"n": 3, "accuracy": pytest.approx(1 / 3), "f1": 0.5, "predicted": {"a": 2, "b": 1}},
        "c": {"n": 0, "accuracy": None, "f1": 0.0, "predicted": {}},
    }


def test_classes_of_the_same_name_are_distinguished():
    """ImageNet has two classes named missile, and two named sunglasses."""
    found = distinct(["missile", "tench", "missile"])
    assert found == ["missile (class 0)", "tench", "missile (class 2)"]
