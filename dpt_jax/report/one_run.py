"""The report over one run: its classes, its training, and how sure its answers are."""

import collections
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
from etils import epath

from dpt_jax.evaluation.provenance import read_current, unfinished
from dpt_jax.evaluation.results import Results
from dpt_jax.methods import METHODS, ROWS, TEXT, ZERO_SHOT
from dpt_jax.report import run_figures
from dpt_jax.report.tables import CSVWriter, markdown
from dpt_jax.settings import load_saved, shots_in_words
from dpt_jax.training.metrics import read_metrics

TABLE_FILE, CSV_FILE, FIGURE_FILE = "report.md", "report.csv", "report.png"
TRAINING_FILE, RELIABILITY_FILE = "training.png", "reliability.png"
CONFUSIONS_LISTED = 10
CLASS_HEADER = ["class", "images", "accuracy (%)", "F1"]
CONFUSED_HEADER = ["images of", "taken for", "times"]


def report_run(workdir: epath.Path) -> tuple[str, list[str]]:
    """Write the report over one run; return its Markdown, and the names of the files.

    Raise UserError without results, or with results of other prompts than the run's newest.
    """
    results = read_current(workdir)
    classes = results["per_class"]
    text = f"### {title(results)}\n\n{in_words(results)}\n\n"
    text += f"{markdown(CLASS_HEADER, class_rows(results))}\n"
    if confused := confused_rows(results):
        text += f"\nMost often confused:\n\n{markdown(CONFUSED_HEADER, confused)}\n"
    (workdir / TABLE_FILE).write_text(text, encoding="utf-8", errors="backslashreplace")
    with (workdir / CSV_FILE).open(
        "w", newline="", encoding="utf-8", errors="backslashreplace"
    ) as out:
        writer = CSVWriter(out, ["class", "images", "accuracy", "f1"])
        for name, one in classes.items():
            writer.write([name, one["n"], one["accuracy"], one["f1"]])
    written = [TABLE_FILE, CSV_FILE, FIGURE_FILE]
    draw_confusion(results, workdir / FIGURE_FILE)
    if draw_training(workdir, workdir / TRAINING_FILE):
        written.append(TRAINING_FILE)
    if draw_reliability(results, workdir / RELIABILITY_FILE):
        written.append(RELIABILITY_FILE)
    return text, written


def title(results: Results) -> str:
    """Return such as "DPT on emoji"."""
    return f"{ROWS[results['method']].label} on {dataset_of(results)}"


def dataset_of(results: Results) -> str:
    """Return the name of the dataset for people: of a folder, the folder's own."""
    return (results.get("of") or {}).get("data", {}).get("name") or results["dataset"]


def trained_dataset(results: Results) -> str:
    """Return the name of the dataset that the prompts were trained on."""
    trained = (results.get("of") or {}).get("trained_on") or {}
    return trained.get("name") or results["trained_on"]["dataset"]


def in_words(results: Results) -> str:
    """Return what was trained on what, and how well it does."""
    trained = results["trained_on"]
    made = ""
    if trained:
        shots = shots_in_words(results["shots"])
        far = f", to {epoch}" if (epoch := unfinished(results)) else ""
        made = f"Trained on {trained_dataset(results)}, {shots}, seed {results['seed']}{far}: "
    words = f"{100 * results['accuracy']:.1f} % of {results['n']:,} test images right"
    if results["method"] != ZERO_SHOT and "zero_shot_accuracy" in results:
        words += f" (zero-shot {100 * results['zero_shot_accuracy']:.1f} %)"
    words += f", macro F1 {results['macro_f1']:.3f}"
    if "calibration" in results:
        words += f", expected calibration error {100 * results['calibration']['ece']:.1f} %"
    return f"{made}{words}."


def class_rows(results: Results) -> list[list[str]]:
    """Return a row of CLASS_HEADER for each class."""
    return [
        [
            name,
            f"{one['n']:,}",
            "" if one["accuracy"] is None else f"{100 * one['accuracy']:.1f}",
            f"{one['f1']:.3f}",
        ]
        for name, one in results["per_class"].items()
    ]


def confused_rows(results: Results) -> list[list[str]]:
    """Return a row of CONFUSED_HEADER for each of the most frequent mistakes."""
    classes = results["per_class"]
    wrong = collections.Counter(
        {
            (name, other): c
            for name, one in classes.items()
            for other, c in one["predicted"].items()
            if other != name
        }
    )
    return [
        [name, other, f"{count} of {classes[name]['n']}"]
        for (name, other), count in wrong.most_common(CONFUSIONS_LISTED)
    ]


def draw_confusion(results: Results, file: epath.Path | BinaryIO) -> None:
    """Draw the confusion matrix."""
    classes = results["per_class"]
    run_figures.draw_confusion(confusion_matrix(classes), list(classes), title(results), file)


def draw_training(workdir: epath.Path, file: epath.Path | BinaryIO) -> bool:
    """Draw the training's curves; return False where nothing was trained there."""
    records = read_metrics(workdir)
    if not records:
        return False
    config = load_saved(workdir)
    method = METHODS[config.method]
    both = TEXT in method.parts and method.visual
    run_figures.draw_training(records, config.loss.guidance_epochs if both else 0, file)
    return True


def draw_reliability(results: Results, file: epath.Path | BinaryIO) -> bool:
    """Draw how often answers are right against how sure they are.

    Return False for results of a version that did not note it.
    """
    if "calibration" not in results:
        return False
    found = {
        ZERO_SHOT: results["zero_shot_calibration"],
        results["method"]: results["calibration"],
    }
    run_figures.draw_reliability(found, file)
    return True


def confusion_matrix(classes: Mapping[str, Any]) -> np.ndarray:
    """Return (C, C): the percent of the images of class i that are taken for class j."""
    names = {name: i for i, name in enumerate(classes)}
    matrix = np.zeros((len(names), len(names)))
    for name, one in classes.items():
        for other, count in one["predicted"].items():
            matrix[names[name], names[other]] = 100 * count / one["n"]
    return matrix
