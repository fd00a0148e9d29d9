"""Training from Python, the estimator in scikit-learn's tools, and the examples of the API."""

import doctest
import importlib
import sys
import tempfile

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone, is_classifier
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import dpt_jax
from dpt_jax.config import keyword_config
from dpt_jax.data.folder import in_memory, read_folder
from dpt_jax.errors import UserError
from dpt_jax.training.checkpoints import load_newest
from tests.helpers.commands import refused
from tests.helpers.configs import results_of
from tests.helpers.golden import IMAGES

SETTINGS = {"shots": -1, "epochs": 2, "top_k": np.int64(3)}
SETTINGS |= {"text_prompt__length": 4, "visual_prompt.length": 3}


@pytest.fixture(scope="module")
def memory():
    """The training images of the folder as a path, a PIL image and arrays, and their names."""
    whole = read_folder(IMAGES)
    paths = [IMAGES / example.path for example in whole.train]
    images = [*paths[:1], Image.open(paths[1]), *(np.asarray(whole.read(p)) for p in paths[2:])]
    return images, [whole.classnames[example.label] for example in whole.train]


@pytest.mark.compiles
def test_a_folder_is_a_run_of_the_command_line(trained, clip_dir, tmp_path, files):
    """The same bits and files, also if a callback ends it and the same call resumes."""
    epochs = []

    def end(metrics):
        epochs.append(metrics.pop("epoch"))
        return len(epochs) == 1

    for _ in range(2):
        given = {"clip": str(clip_dir), "workdir": tmp_path / "run", "callbacks": [end]}
        classifier = dpt_jax.fit(IMAGES, **given, **SETTINGS)
    assert epochs == [1, 2]
    assert load_newest(tmp_path / "run").digest == load_newest(trained).digest
    expected = dpt_jax.load(trained)
    np.testing.assert_array_equal(classifier.predict_proba(files), expected.predict_proba(files))
    classifier.save(tmp_path / "prompts.safetensors")
    assert dpt_jax.load(tmp_path / "prompts.safetensors").predict(files) == expected.predict(files)
    names = {file.name for file in trained.iterdir() if "tfevents" not in file.name}
    assert names - {"predictions.npz"} <= {file.name for file in (tmp_path / "run").iterdir()}
    results = [results_of(w) for w in (trained, tmp_path / "run")]
    assert results[0] == results[1]


@pytest.mark.compiles
def test_images_in_memory_are_those_of_the_folder(
    trained, clip_dir, memory, tmp_path, monkeypatch, capsys
):
    """The same bits, silent, and nothing is left on the disk."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    metrics: list[dict[str, float]] = []
    given = {"clip": str(clip_dir), "validation": memory, "verbose": False}
    classifier = dpt_jax.fit(*memory, callbacks=[metrics.append], **given, **SETTINGS)
    assert [0 <= one["val_accuracy"] <= 1 for one in metrics] == [True, True]
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []
    classifier.save(tmp_path / "prompts.safetensors")
    assert load_newest(tmp_path / "prompts.safetensors").digest == load_newest(trained).digest


@pytest.mark.parametrize(
    ("method", "key"),
    [("dpt", "loss.alpha"), ("tip_adapter", "classifier.alpha")],
)
def test_a_keyword_without_its_section_is_a_key_of_the_method(method, key):
    assert keyword_config(method, {key.rpartition(".")[2]: 2})[1] == {key: 2}


def test_the_record_is_of_the_pixels(memory):
    images, names = memory
    paths = [example.path for example in in_memory(images, names, validation=memory).train]
    assert paths[0] == str(images[0])
    assert len({*paths}) == len(paths)
    other = [*images[:-1], images[-1] ^ np.uint8(1)]
    changed = [example.path for example in in_memory(other, names).train]
    assert [a == b for a, b in zip(paths, changed, strict=True)] == [True] * 11 + [False]


def test_a_missing_or_broken_file_is_named_before_training(memory, clip_dir, tmp_path, capsys):
    """A missing file even before CLIP is loaded."""
    images, labels = memory
    missing, broken = tmp_path / "none.png", tmp_path / "broken.png"
    broken.write_bytes(images[0].read_bytes()[:300])
    for file, clip in ((missing, "no-such-clip"), (broken, clip_dir)):
        with pytest.raises(UserError, match=file.name):
            dpt_jax.fit([*images, file], [*labels, labels[0]], clip=str(clip), **SETTINGS)
        assert "Training" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"epcohs": 3}, "train.epochs"),
        ({"lr": 3.0, "method": "coop"}, "lr is not a setting of coop"),
        ({"epochs": 3, "train__epochs": 3}, "train__epochs"),
        ({"epochs": "3"}, "train.epochs"),
        ({"root": "photos"}, "dataset.root"),
        ({"labels": None}, "labels"),
        ({"labels": ["dog"]}, "12 and 1"),
        ({"classnames": ["dog", "cat"]}, "airplane"),
        ({"labels": np.eye(12)}, "array"),
        ({"validation": ([], [])}, "0 and 0"),
        ({"callbacks": print}, "callbacks"),
        ({"workdir": "prompts.safetensors"}, "prompts.safetensors"),
    ],
)
def test_wrong_input_is_named(memory, clip_dir, arguments, named):
    images, labels = memory
    given = {"images": images, "labels": labels, "clip": str(clip_dir), **arguments}
    refused(named, dpt_jax.fit, **given)


@pytest.fixture(scope="module")
def arrays():
    """Training images of three classes in memory, and their labels, which do not begin at 0."""
    whole = read_folder(IMAGES)
    chosen = [example for example in whole.train if example.label < 3]
    images = np.stack([np.asarray(whole.read(example.path).resize((32, 32))) for example in chosen])
    return images, np.array([example.label + 1 for example in chosen]), whole.classnames


@pytest.mark.compiles
def test_examples_run():
    found = doctest.testmod(importlib.import_module("dpt_jax.predictor.fit"))
    assert found.attempted
    assert not found.failed


@pytest.mark.compiles
def test_labels_are_those_of_the_caller(arrays, clip_dir, monkeypatch):
    """Numbers that begin anywhere, and names of them; without scikit-learn."""
    images, labels, names = arrays
    monkeypatch.setitem(sys.modules, "sklearn", None)
    given = {"method": "zeroshot", "clip": str(clip_dir)}
    classifier = dpt_jax.PromptClassifier(**given, classnames=["nothing", *names])
    classifier.fit(images, labels)
    assert classifier.classes_.tolist() == [1, 2, 3]
    assert classifier.predictor_.classnames == names[:3]
    probabilities = classifier.predict_proba(images)
    np.testing.assert_array_equal(classifier.predict(images), probabilities.argmax(-1) + 1)
    expected = (probabilities.argmax(-1) + 1 == labels).mean()
    assert classifier.score(images, labels) == pytest.approx(expected)
    assert classifier.score(images, labels[:, None]) == pytest.approx(expected)
    refused(f"{len(images)} and 1", classifier.score, images, labels[:1])
    named = dpt_jax.PromptClassifier(**given).fit(images, np.array(names)[labels - 1])
    np.testing.assert_array_equal(named.predict_proba(images), probabilities)


@pytest.mark.compiles
def test_a_search_within_a_pipeline(arrays, clip_dir):
    images, labels, _ = arrays
    classifier = dpt_jax.PromptClassifier(method="zeroshot", clip=str(clip_dir))
    assert is_classifier(classifier)
    assert clone(classifier).get_params() == classifier.get_params()
    assert "method=" in repr(classifier)
    pipeline = make_pipeline(FunctionTransformer(np.ascontiguousarray), classifier)
    choices = {"promptclassifier__dataset__template": ["{} texture."]}
    search = GridSearchCV(pipeline, choices, cv=2, error_score="raise").fit(images, labels)
    assert search.predict(images).shape == labels.shape
    assert search.cv_results_["params"] == [{key: value for key, (value,) in choices.items()}]
    refused("and 12", clone(classifier).fit, images, np.eye(2, dtype=int)[labels % 2])
    refused("epcohs", clone(classifier).set_params(epcohs=3).fit, images, labels)
