"""results.json and predictions.npz: names, reading, and a summary in words."""

import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from dpt_jax.io import reading
from dpt_jax.methods import ROWS, ZERO_SHOT

RESULTS_FILE = "results.json"
PREDICTIONS_FILE = "predictions.npz"

Results = Mapping[str, Any]
REQUIRED = (
    "method", "dataset", "classes", "shots", "seed", "n", "accuracy", "macro_f1", "per_class",
    "trained_on",
)  # fmt: skip


def read_result(file: epath.Path) -> dict[str, Any]:
    """Read one results.json.

    Raises:
        UserError: The file is missing, damaged or incomplete.
    """
    with reading(file, "the results of a run; evaluate the run again with --mode=eval"):
        results = json.loads(file.read_text(encoding="utf-8"))
        if missing := [key for key in REQUIRED if key not in results]:
            raise ValueError(f"{missing[0]!r} is missing")
        if results["method"] not in ROWS or not 0 <= results["accuracy"] <= 1:
            raise ValueError("its method or accuracy is not valid")
    return results


def summary(results: Results) -> str:
    """Describe the results in one or two lines, for the terminal."""
    accuracy, zero_shot = 100 * results["accuracy"], 100 * results["zero_shot_accuracy"]
    method, n, macro_f1 = results["method"], results["n"], results["macro_f1"]
    line = f"{method}: {accuracy:.1f} % of {n} test images right, macro F1 {macro_f1:.3f}"
    if results["unreadable"]:
        line += f" ({results['unreadable']} more could not be read and were left out)"
    if method == ZERO_SHOT:
        return line
    gained = accuracy - zero_shot
    return f"{line}\nzero-shot: {zero_shot:.1f} %, so {method} gained {gained:+.1f} points"
