"""Few-shot classifiers from CLIP: prompts that are trained on a few images of each class.

    import dpt_jax

    classifier = dpt_jax.fit(images, labels, epochs=60)  # paths, PIL images or arrays; or a folder
    classifier.predict(["a.jpg", "b.jpg"])            # class names
    classifier.predict_proba(["a.jpg", "b.jpg"])      # (2, C) probabilities
    classifier.score(test_images, test_labels)        # accuracy
    classifier.save("pets.safetensors")
    dpt_jax.load("pets.safetensors")                  # the same; also of a workdir
    dpt_jax.results("runs")                           # a pandas DataFrame, one row per run

`PromptClassifier` is an estimator for scikit-learn. The command `dpt-jax` does the same on folders.
"""

import importlib
from typing import TYPE_CHECKING

from dpt_jax.errors import UserError
from dpt_jax.version import __version__

if TYPE_CHECKING:
    from dpt_jax.predictor import Predictor, load
    from dpt_jax.predictor.fit import PromptClassifier, fit
    from dpt_jax.report import results

__all__ = [
    "Predictor",
    "PromptClassifier",
    "UserError",
    "__version__",
    "fit",
    "load",
    "results",
]

# Imported when they are first used: importing JAX takes seconds.
_MODULES = {
    "Predictor": "dpt_jax.predictor",
    "PromptClassifier": "dpt_jax.predictor.fit",
    "fit": "dpt_jax.predictor.fit",
    "load": "dpt_jax.predictor",
    "results": "dpt_jax.report",
}


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
