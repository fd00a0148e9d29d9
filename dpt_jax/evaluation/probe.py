"""A linear probe, a baseline for prompts: what the frozen features of the same shots separate."""

import functools
import operator

import numpy as np

from dpt_jax.errors import UserError
from dpt_jax.evaluation.evaluate import over_images, predict
from dpt_jax.evaluation.metrics import Predictions
from dpt_jax.logging import say
from dpt_jax.training.setup import Experiment

# Inverse strengths of the regularisation, the strongest first. They are large since features have
# unit length.
STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
MOST_ITERATIONS = 5000


def fit_and_predict(experiment: Experiment) -> Predictions:
    """Fit probes to the training images, and predict the test split with the best one.

    The best one has the highest accuracy on the validation images of the sample, at most 4 per
    class as in few-shot protocols. Ties go to the strongest regularisation. Logits are
    log-probabilities.

    Raises:
      UserError: There is no validation split, a class has no readable training image, or
        scikit-learn is not installed.
    """
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as reason:
        raise UserError("the probe needs scikit-learn: `pip install scikit-learn`.") from reason
    dataset, name = experiment.dataset, experiment.config.dataset.name
    if not dataset.val:
        raise UserError(
            f"{name} has no validation images, on which the probe chooses its regularisation: "
            "add a folder val/ next to train/ and test/."
        )
    # Zero-shot CLIP and the probe classify the same features.
    if experiment.features is None:
        experiment = experiment._replace(features={})
    found = predict(experiment, {})
    features = functools.partial(
        over_images, experiment, compute=operator.itemgetter("features"), title="encode"
    )
    train, label, _ = features(dataset.train)
    val, val_label, _ = features(dataset.val)
    test, _, _ = features(dataset.test)
    # The columns of a fitted probe are the classes that it has seen.
    if unseen := sorted({*range(len(dataset.classnames))} - {*label.tolist()}):
        raise UserError(
            f"{name}: no training image of class {dataset.classnames[unseen[0]]!r} can be read: "
            "repair them or remove the class."
        )
    if not len(val_label):
        raise UserError(f"{name}: none of its {len(dataset.val)} validation images can be read.")
    fitted = [
        LogisticRegression(C=strength, max_iter=MOST_ITERATIONS).fit(train, label)
        for strength in STRENGTHS
    ]
    accuracies = [float((one.predict(val) == val_label).mean()) for one in fitted]
    best = int(np.argmax(accuracies))
    say(
        f"probe: fitted to {len(label)} training images; C = {STRENGTHS[best]:g} gets "
        f"{100 * accuracies[best]:.1f} % of {len(val_label)} validation images right "
        f"(at most {np.bincount(val_label).max()} per class)."
    )
    return found._replace(logits=fitted[best].predict_log_proba(test).astype(np.float32))
