"""Training and classification by scikit-learn's conventions, which need not be installed."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dpt_jax.data.memory import Images, Labels, image_list, label_indices
from dpt_jax.predictor.fit import fit
from dpt_jax.predictor.predictor import Predictor


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
        """Keep the parameters, which `fit` checks.

        Args:
          method: See `dpt_jax.fit`, as for the next two.
          clip: CLIP's weights.
          classnames: Class names, if labels are indices into them. By default labels are names.
          verbose: Whether to print lines and show bars.
          **keywords: Others of `dpt_jax.fit`, such as `epochs`.
        """
        self._parameters = {
            **{"method": method, "clip": clip, "classnames": classnames, "verbose": verbose},
            **keywords,
        }

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters; deep changes nothing."""
        return {**self._parameters}

    def set_params(self, **parameters: Any) -> "PromptClassifier":
        """Set parameters; return the classifier."""
        self._parameters |= parameters
        return self

    def fit(self, X: Images, y: Labels) -> "PromptClassifier":  # noqa: N803
        """Train on images X with labels y; return the classifier.

        Raises:
          UserError: See `dpt_jax.fit`.
        """
        parameters = self.get_params()
        self.classes_, indices = np.unique(np.asarray(y), return_inverse=True)
        names = [str(label) for label in self.classes_]
        if (given := parameters.pop("classnames")) is not None:
            chosen, _ = label_indices(self.classes_, len(names), given)
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
        images = image_list(X)
        return float(np.average(self.predict(images) == np.asarray(y), weights=sample_weight))

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags(),
            input_tags=InputTags(two_d_array=False, three_d_array=True, string=True),
        )

    def __repr__(self) -> str:
        """Return the call that makes this classifier, without defaults."""
        defaults = PromptClassifier().get_params()
        own = [
            f"{name}={value!r}"
            for name, value in self._parameters.items()
            if name not in defaults or value != defaults[name]
        ]
        return f"PromptClassifier({', '.join(own)})"
