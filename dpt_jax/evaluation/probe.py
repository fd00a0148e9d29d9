"""A linear probe: logistic regression on the features of plain CLIP, fitted to the same shots.

It says what the frozen features can tell apart, which is what prompts are compared with.
"""

import numpy as np

from dpt_jax.data.records import Example
from dpt_jax.errors import UserError
from dpt_jax.evaluation.evaluate import Predictions, over_test_images, predict
from dpt_jax.logging import say
from dpt_jax.training.setup import Experiment

# Inverse strengths of the regularisation, the strongest first. Features have unit length, which
# makes the useful ones large.
STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
MOST_ITERATIONS = 5000


def fit_and_predict(experiment: Experiment) -> Predictions:
    """Return the log-probabilities of a probe of the training images for the test split.

    experiment: of plain CLIP, with an image of each class to train on. The regularisation is the
    one that gets most of the validation split right, the stronger one of equals. Raise UserError
    without a validation split, and where scikit-learn is not installed.
    """
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as reason:
        raise UserError("the probe needs scikit-learn: `pip install scikit-learn`.") from reason
    dataset, name = experiment.dataset, experiment.config.dataset.name
    if not dataset.val:
        raise UserError(
            f"{name} has no validation images, by which the probe chooses its regularisation: "
            "give it a folder val/ beside train/ and test/."
        )
    # The test images are wanted twice, for plain CLIP's own answers and for the probe's.
    if experiment.features is None:
        experiment = experiment._replace(features={})
    found = predict(experiment, {})
    train, label = _features(experiment, dataset.train, "train")
    val, val_label = _features(experiment, dataset.val, "validate")
    test, _ = _features(experiment, dataset.test, "evaluate")
    fitted = [
        LogisticRegression(C=strength, max_iter=MOST_ITERATIONS).fit(train, label)
        for strength in STRENGTHS
    ]
    right = [float((one.predict(val) == val_label).mean()) for one in fitted]
    best = int(np.argmax(right))
    say(
        f"probe: C = {STRENGTHS[best]:g} gets {100 * right[best]:.1f} % of {len(val_label)} "
        "validation images right."
    )
    return found._replace(logits=fitted[best].predict_log_proba(test).astype(np.float32))


def _features(
    experiment: Experiment, examples: list[Example], title: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the features of plain CLIP (N, E) and the label (N,) of the examples."""
    others = experiment._replace(dataset=experiment.dataset._replace(test=examples))
    features, label, _ = over_test_images(others, title, lambda batch: (batch.features,))
    return features, label
