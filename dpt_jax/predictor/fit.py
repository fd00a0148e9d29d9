"""Training from Python: a function, and an estimator by the conventions of scikit-learn."""

import collections
import contextlib
import functools
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from dpt_jax import distributed
from dpt_jax.config import keyword_config
from dpt_jax.data.folder import (
    Images,
    Labels,
    check_count,
    image_list,
    in_memory,
    is_image_name,
    label_indices,
)
from dpt_jax.errors import UserError
from dpt_jax.evaluation.evaluate import evaluate
from dpt_jax.io import as_path
from dpt_jax.logging import quiet, say
from dpt_jax.methods import METHODS
from dpt_jax.predictor import Predictor
from dpt_jax.runs import train_run
from dpt_jax.training.loop import Callback
from dpt_jax.training.setup import prepare
from dpt_jax.training.state import Stopped
from dpt_jax.training.workdir import training_config

# Keys that say where images are.
OF_A_FOLDER = ("dataset.root", "dataset.name", "dataset.source", "dataset.sample", "dataset.split")


def fit(
    images: Images,
    labels: Labels | None = None,
    *,
    method: str = "dpt",
    clip: str | os.PathLike[str] = "",
    classnames: Sequence[str] | None = None,
    validation: tuple[Images, Labels] | None = None,
    workdir: str | os.PathLike[str] | None = None,
    callbacks: Sequence[Callback] = (),
    verbose: bool = True,
    **settings: Any,
) -> Predictor:
    """Train prompts for CLIP on a few images of each class.

    For the same images and settings, prompts are bit-identical to those of `dpt-jax train`.

    Args:
      images: N images: paths, PIL images or uint8 arrays (H, W) or (H, W, 3), or an array
        (N, H, W, 3) or (N, H, W). All are used, unless `shots` is given. Or one folder, whose
        classes, splits and `shots` (16) are as on the command line.
      labels: N class names, which CLIP reads: "maine coon" and not "maine_coon". Or N class indices
        into `classnames`. None for a folder.
      method: A method of the table in docs/method.md.
      clip: CLIP's weights, by default "openai/clip-vit-base-patch32".
      classnames: All class names in order. By default those of the labels, sorted.
      validation: Images and labels, which are not trained on. Metrics then have `val_accuracy`, and
        keep="best" ends with the prompts of the best epoch.
      workdir: Folder of the run, as for `dpt-jax train`: the same call resumes a run that was
        stopped. By default nothing stays on the disk.
      callbacks: Functions that get a dictionary of the metrics after each epoch. The training ends
        if one returns true.
      verbose: Whether to print lines and show bars.
      **settings: Keys that `dpt-jax settings` lists: `train__epochs=60`. The section may be left
        out if it is train or dataset, or if no other section of the method has such a name:
        `epochs=60`, `alpha=0.5`.

    Returns:
      The classifier.

    Raises:
      UserError: An argument is wrong, or does not fit the images, the CLIP or the workdir.
      KeyboardInterrupt: After Ctrl-C or SIGTERM, when the run is saved.

    Examples:
      >>> import pathlib
      >>> import dpt_jax
      >>> digits = pathlib.Path(dpt_jax.__file__).parent / "assets/digits/train"
      >>> scans = sorted(digits.glob("zero/*"))[:4] + sorted(digits.glob("one/*"))[:4]
      >>> classifier = dpt_jax.fit(
      ...     scans, ["zero"] * 4 + ["one"] * 4, method="coop", clip="tiny-clip", epochs=2,
      ...     template="a drawing of the number {}.", verbose=False,
      ... )
      >>> classifier.classnames
      ('one', 'zero')
      >>> classifier.predict_proba(scans).shape
      (8, 2)
      >>> classifier.encode_text(["two", "three", "four"]).shape
      (3, 128)
    """
    if clip:
        settings["clip.weights"] = clip
    config, values = keyword_config(method, settings)
    whole = None
    if labels is not None:
        skip_missing = values.get("dataset.on_error") == "skip"
        whole = in_memory(images, labels, classnames, validation, skip_missing)
        by_class = collections.Counter(example.label for example in whole.train)
        values.setdefault("dataset.shots", max(by_class.values()))
    elif not isinstance(images, str | os.PathLike) or is_image_name(as_path(images).name):
        raise UserError("labels is missing: give a class name or an index for each image.")
    elif classnames is not None or validation is not None:
        raise UserError(
            f"{images}: a folder has its own classnames and validation images: leave out yours."
        )
    if callable(callbacks) or not all(map(callable, callbacks)):
        raise UserError("callbacks is not a list of functions.")
    taken = OF_A_FOLDER if whole else ("dataset.root",)
    if twice := [key for key in taken if key in values]:
        raise UserError(f"{twice[0]} is given, and so are the images: leave it out.")
    if not whole:
        values["dataset.root"] = os.fspath(images)
    distributed.keep_compiled()
    with contextlib.ExitStack() as stack:
        if not verbose:
            stack.enter_context(quiet())
        folder = as_path(
            workdir or stack.enter_context(tempfile.TemporaryDirectory(prefix="dpt_jax-"))
        )
        if whole and all(name.isdigit() for name in whole.classnames):
            say("the classes are numbers, which mean little to CLIP: name them with classnames.")
        if (callbacks or validation is not None) and not METHODS[method].in_towers:
            say(f"{method} has no epochs, so callbacks and validation images are not used.")
        config = training_config(config, values, folder)
        own = functools.partial(prepare, whole=whole)
        try:
            experiment, saved = train_run(config, folder, prepare=own, callbacks=callbacks)
        except Stopped:
            raise KeyboardInterrupt from None
        if workdir and experiment.dataset.test:
            evaluate(experiment, saved, folder)
        return Predictor(experiment, saved, source=folder if workdir else None)


class PromptClassifier:
    """A classifier for scikit-learn's tools: `cross_val_score`, `GridSearchCV`, pipelines.

    Its parameters are the keywords of `dpt_jax.fit`. Images are given as there, and labels may be
    anything that can be sorted.

    Attributes:
      classes_: (C,), the labels, sorted; after `fit`.
      predictor_: What `dpt_jax.fit` returns; after `fit`.

    Examples:
      >>> import dpt_jax, pathlib
      >>> from sklearn.model_selection import cross_val_score
      >>> digits = pathlib.Path(dpt_jax.__file__).parent / "assets/digits/train"
      >>> scans = sorted(digits.glob("zero/*"))[:8] + sorted(digits.glob("one/*"))[:8]
      >>> classifier = dpt_jax.PromptClassifier(
      ...     clip="tiny-clip", method="coop", epochs=2, template="a drawing of the number {}."
      ... )
      >>> cross_val_score(classifier, scans, ["zero"] * 8 + ["one"] * 8, cv=2).shape
      (2,)
    """

    _estimator_type = "classifier"  # for scikit-learn before 1.6

    def __init__(
        self,
        *,
        method: str = "dpt",
        clip: str = "",
        classnames: Sequence[str] | None = None,
        verbose: bool = False,
        **keywords: Any,
    ) -> None:
        """Store the parameters, those of `dpt_jax.fit`, which `fit` checks.

        classnames: Class names, if labels are indices into them. By default labels are names.
        """
        own = {"method": method, "clip": clip, "classnames": classnames, "verbose": verbose}
        self._parameters = {**own, **keywords}

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters; deep has no effect."""
        return {**self._parameters}

    def set_params(self, **parameters: Any) -> "PromptClassifier":
        """Set parameters; return the classifier."""
        self._parameters |= parameters
        return self

    def fit(self, X: Images, y: Labels) -> "PromptClassifier":  # noqa: N803
        """Train on images X with labels y, see `dpt_jax.fit`; return the classifier."""
        parameters = self.get_params()
        self.classes_, indices = np.unique(np.asarray(y), return_inverse=True)
        names = [str(label) for label in self.classes_]
        if (given := parameters.pop("classnames")) is not None:
            chosen, given = label_indices(self.classes_, len(names), given)
            names = [given[i] for i in chosen]
        labels = [names[i] for i in indices.ravel()]
        self.predictor_: Predictor = fit(X, labels, classnames=names, **parameters)
        return self

    def predict(self, X: Images) -> np.ndarray:  # noqa: N803
        """Return the labels of images, (N,)."""
        return np.asarray(self.classes_[self.predict_proba(X).argmax(-1)])

    def predict_proba(self, X: Images) -> np.ndarray:  # noqa: N803
        """Return the probabilities of the classes, (N, C) float32, in the order of classes_."""
        return self.predictor_.predict_proba(X)

    def score(self, X: Images, y: Labels, sample_weight: Any = None) -> float:  # noqa: N803
        """Return the accuracy, 0 to 1, perhaps weighted by (N,)."""
        images, labels = image_list(X), np.asarray(y).ravel()
        check_count(len(labels), len(images))
        return float(np.average(self.predict(images) == labels, weights=sample_weight))

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags(),
            input_tags=InputTags(two_d_array=False, three_d_array=True, string=True),
        )

    def __repr__(self) -> str:
        """Return the call that makes this classifier, as scikit-learn shows in a pipeline."""
        own = ", ".join(f"{name}={value!r}" for name, value in self._parameters.items())
        return f"PromptClassifier({own})"
