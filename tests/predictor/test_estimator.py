"""The estimator in scikit-learn's tools, and the examples of the Python API."""

import doctest
import importlib
import sys

import numpy as np
import pytest
from sklearn.base import clone, is_classifier
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import dpt_jax
from dpt_jax.data.folder import read_folder
from tests.helpers.commands import refused
from tests.helpers.golden import SMALL


@pytest.fixture(scope="module")
def memory():
    """Training images of three classes in memory, and their labels, which do not begin at 0."""
    whole = read_folder(SMALL / "images")
    chosen = [example for example in whole.train if example.label < 3]
    images = np.stack([np.asarray(whole.read(example.path).resize((32, 32))) for example in chosen])
    return images, np.array([example.label + 1 for example in chosen]), whole.classnames


@pytest.mark.compiles
def test_examples_run():
    found = doctest.testmod(importlib.import_module("dpt_jax.predictor.fit"))
    assert found.attempted
    assert not found.failed


@pytest.mark.compiles
def test_labels_are_those_of_the_caller(memory, clip_dir, monkeypatch):
    """Numbers that begin anywhere, and names of them; without scikit-learn."""
    images, labels, names = memory
    monkeypatch.setitem(sys.modules, "sklearn", None)
    classifier = dpt_jax.PromptClassifier(
        method="zeroshot", clip=str(clip_dir), classnames=["nothing", *names]
    ).fit(images, labels)
    assert classifier.classes_.tolist() == [1, 2, 3]
    assert classifier.predictor_.classnames == names[:3]
    probabilities = classifier.predict_proba(images)
    np.testing.assert_array_equal(classifier.predict(images), probabilities.argmax(-1) + 1)
    expected = (probabilities.argmax(-1) + 1 == labels).mean()
    assert classifier.score(images, labels) == pytest.approx(expected)
    assert classifier.score(images, labels[:, None]) == pytest.approx(expected)
    refused(f"{len(images)} and 1", classifier.score, images, labels[:1])
    named = dpt_jax.PromptClassifier(method="zeroshot", clip=str(clip_dir))
    named.fit(images, np.array(names)[labels - 1])
    np.testing.assert_array_equal(named.predict_proba(images), probabilities)


@pytest.mark.compiles
def test_a_search_within_a_pipeline(memory, clip_dir):
    images, labels, _ = memory
    classifier = dpt_jax.PromptClassifier(method="zeroshot", clip=str(clip_dir))
    assert is_classifier(classifier)
    assert repr(clone(classifier)) == repr(classifier)
    pipeline = make_pipeline(FunctionTransformer(np.ascontiguousarray), classifier)
    templates = ["{} texture."]
    search = GridSearchCV(
        pipeline, {"promptclassifier__dataset__template": templates}, cv=2, error_score="raise"
    ).fit(images, labels)
    assert search.predict(images).shape == labels.shape
    assert [*search.cv_results_["param_promptclassifier__dataset__template"]] == templates
    refused("and 12", clone(classifier).fit, images, np.eye(2, dtype=int)[labels % 2])
    refused(r"train\.epochs", clone(classifier).set_params(epcohs=3).fit, images, labels)
