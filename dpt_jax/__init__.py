"""Dual modality prompt tuning (DPT) of CLIP in JAX and Flax.

predictor = dpt_jax.load("runs/mine")
probabilities = predictor.predict(["a.jpg", "b.jpg"])  # (2, classes)
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dpt_jax.errors import UserError
from dpt_jax.version import __version__

if TYPE_CHECKING:
    import pandas as pd

    from dpt_jax.predictor.predictor import Predictor

__all__ = ["Predictor", "UserError", "__version__", "load", "results"]


def load(
    run: str | os.PathLike[str],
    classnames: Sequence[str] | None = None,
    clip: str = "",
    batch_size: int = 0,
) -> "Predictor":
    """Return the predictor of a workdir, or of a file of `dpt-jax convert export`.

    classnames: other classes than those of the training. clip: where CLIP's weights are, if they
    have moved. batch_size: images that a device takes at a time; 0 for the default. Raise UserError
    naming what is missing or does not fit.
    """
    # Importing JAX takes seconds that reading a configuration need not wait for.
    from dpt_jax.predictor import predictor

    return predictor.load(run, classnames, clip, batch_size)


def results(runs: str | os.PathLike[str]) -> "pd.DataFrame":
    """Read the results of all runs in a folder.

    Args:
        runs: A folder of runs, or one workdir.

    Returns:
        One row per results.json: method, dataset, classes, trained_on, trained_classes, shots,
        seed, accuracy, macro_f1 and zero_shot_accuracy (0 to 1), ece, n, unreadable, path,
        digests of what the results are of, and the settings by key. `excluded` is the reason why
        a report leaves the run out, and "" if it does not.

    Raises:
        UserError: There is no results.json, or one is damaged.
    """
    from dpt_jax.report import frame

    return frame.results(runs)


def __getattr__(name: str) -> object:
    if name == "Predictor":
        from dpt_jax.predictor.predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
