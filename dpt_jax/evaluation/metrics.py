"""Scores of predictions: accuracy and F1 by class, and calibration."""

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np

CALIBRATION_BINS = 15


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities of logits (…, C), in their dtype.

    SciPy has the same, whose import takes half a second of every start.
    """
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def class_scores(
    predicted: np.ndarray, label: np.ndarray, names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return the scores of each class.

    n: its images. accuracy: the part of them that is recognised. f1: 0 where it is undefined.
    predicted: what its images were taken for, {class: images}, most first.
    """
    scores = {}
    for c, name in enumerate(names):
        hits, n, named = (
            ((predicted == c) & (label == c)).sum(),
            (label == c).sum(),
            (predicted == c).sum(),
        )
        taken_for = collections.Counter(predicted[label == c].tolist())
        scores[name] = {
            "n": int(n),
            "accuracy": float(hits / n) if n else None,
            "f1": float(2 * hits / (n + named)) if n + named else 0.0,
            "predicted": {names[other]: count for other, count in taken_for.most_common()},
        }
    return scores


def calibration(logits: np.ndarray, label: np.ndarray) -> dict[str, Any]:
    """Return how far confidence is from accuracy (Guo et al. 2017, equation 5).

    ece: the expected calibration error, from 0 to 1. bins: for each fifteenth of the probabilities
    that has images, their number, their mean probability and their accuracy.
    """
    probabilities = softmax(logits.astype(np.float64))
    confidence, right = probabilities.max(-1), probabilities.argmax(-1) == label
    numbers = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    bins = [
        {
            "images": int(own.sum()),
            "confidence": float(confidence[own].mean()),
            "accuracy": float(right[own].mean()),
        }
        for own in (numbers == number for number in np.unique(numbers))
    ]
    gaps = [one["images"] * abs(one["accuracy"] - one["confidence"]) for one in bins]
    return {"ece": sum(gaps) / len(label), "bins": bins}


def distinct(classnames: Sequence[str]) -> list[str]:
    """Return the names; one that several classes have gets the class's number.

    ImageNet has such a name, "missile".
    """
    times = collections.Counter(classnames)
    return [
        name if times[name] == 1 else f"{name} (class {i})" for i, name in enumerate(classnames)
    ]
