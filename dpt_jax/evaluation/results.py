"""results.json and predictions.npz: what they hold, and how they are read."""

import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from dpt_jax.errors import UserError
from dpt_jax.methods import ROWS, ZERO_SHOT

RESULTS_FILE = "results.json"
PREDICTIONS_FILE = "predictions.npz"

Results = Mapping[str, Any]


def read_result(file: epath.Path) -> dict[str, Any]:
    """Return one results.json.

    Raise UserError where it is missing, damaged or of an older version.
    """
    needed = {
        "method",
        "dataset",
        "classes",
        "shots",
        "seed",
        "n",
        "accuracy",
        "macro_f1",
        "per_class",
        "trained_on",
    }
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        missing = sorted(needed.difference(results))
        if not missing and not (results["method"] in ROWS and 0 <= results["accuracy"] <= 1):
            raise ValueError("its method or accuracy is none")
    except (FileNotFoundError, NotADirectoryError) as reason:
        raise UserError(
            f"{file} is not there: give the workdir of a finished run, or evaluate this one."
        ) from reason
    except (ValueError, TypeError) as reason:
        raise UserError(
            f"{file} is not the results of a run ({reason}): delete it and evaluate again."
        ) from reason
    if missing:
        raise UserError(
            f"{file} does not say {missing[0]!r}: evaluate that run again, with --mode=eval."
        )
    return results


def summary(results: dict[str, Any]) -> str:
    """Return one or two lines for the person who ran it."""
    accuracy, zero_shot = 100 * results["accuracy"], 100 * results["zero_shot_accuracy"]
    method, n, macro_f1 = results["method"], results["n"], results["macro_f1"]
    line = f"{method}: {accuracy:.1f} % of {n} test images right, macro F1 {macro_f1:.3f}"
    if results["unreadable"]:
        line += f" ({results['unreadable']} more could not be read and were left out)"
    if method == ZERO_SHOT:
        return line
    gained = accuracy - zero_shot
    return f"{line}\nzero-shot: {zero_shot:.1f} %, so {method} gained {gained:+.1f} points"
