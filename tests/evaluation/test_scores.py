"""Scores of predictions, by hand."""

import numpy as np
import pytest

from dpt_jax.evaluation.metrics import calibration, class_scores, distinct


def test_calibration_by_hand():
    """Four answers: two of confidence 90 %, one of them right, and two of 60 %, both right."""

    def logits(p):
        return np.log([p, 1 - p])

    found = calibration(
        np.array([logits(0.9), logits(0.9), logits(0.6), logits(0.6)]), np.array([0, 1, 0, 0])
    )
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


def test_classes_of_one_name_are_told_apart():
    """ImageNet has two classes named missile, and two named sunglasses."""
    assert distinct(["missile", "tench", "missile"]) == [
        "missile (class 0)",
        "tench",
        "missile (class 2)",
    ]
