"""Scores of predictions: accuracy and F1 by class, and calibration."""

import collections
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

CALIBRATION_BINS = 15


class Predictions(NamedTuple):
    """Predictions for the N readable test images, in the dataset's order."""

    logits: np.ndarray  # (N, C) float32
    zero_shot_logits: np.ndarray  # (N, C) float32
    label: np.ndarray  # (N,), the true class indices
    row: np.ndarray  # (N,), indices into the test split


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities of logits (…, C), in their dtype.

    scipy.special has the same function, but importing it adds half a second to every command.
    """
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def class_scores(
    predicted: np.ndarray, label: np.ndarray, names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Score each class of predicted and true class indices (N,).

    Returns:
      By name: `n`, the images of the class; `accuracy`, None without images; `f1`, 0 if undefined;
      `predicted`, how many of its images each class was predicted for, most first.
    """
    scores = {}
    for c, name in enumerate(names):
        own = predicted[label == c]
        hits, n, answers = int((own == c).sum()), len(own), int((predicted == c).sum())
        scores[name] = {
            "n": n,
            "accuracy": hits / n if n else None,
            "f1": 2 * hits / (n + answers) if n + answers else 0.0,
            "predicted": {
                names[other]: count
                for other, count in collections.Counter(own.tolist()).most_common()
            },
        }
    return scores


def calibration(logits: np.ndarray, label: np.ndarray) -> dict[str, Any]:
    """Compare confidence with accuracy (Guo et al. 2017, equation 5) by logits (N, C) and labels.

    Returns:
      `ece`, the expected calibration error from 0 to 1; `bins`, for each of 15 equal intervals of
      confidence that is not empty: the number of `images`, mean `confidence` and `accuracy`.
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
    """Add the class index to names that several classes share, such as ImageNet's "missile"."""
    times = collections.Counter(classnames)
    return [
        name if times[name] == 1 else f"{name} (class {i})" for i, name in enumerate(classnames)
    ]
