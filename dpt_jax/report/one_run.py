"""The report on one run: its classes, its training, and its calibration."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from etils import epath

from dpt_jax.config import shots_in_words
from dpt_jax.evaluation.results import Results, read_current
from dpt_jax.io import write_whole
from dpt_jax.methods import CLASSIFIER, METHODS, ROWS, TEXT, WEIGHTS, ZERO_SHOT
from dpt_jax.report import figures
from dpt_jax.report.tables import inert, markdown
from dpt_jax.training.metrics import read_metrics
from dpt_jax.training.record import unfinished
from dpt_jax.training.workdir import load_config

TABLE_FILE, CSV_FILE, FIGURE_FILE = "report.md", "report.csv", "report.png"
TRAINING_FILE, RELIABILITY_FILE = "training.png", "reliability.png"
CONFUSIONS_LISTED = 10
CLASS_HEADER = ["class", "images", "accuracy (%)", "F1"]
CONFUSED_HEADER = ["true class", "predicted class", "images"]


def report_run(workdir: epath.Path) -> tuple[str, list[str]]:
    """Write the tables and figures of a run into its workdir.

    Returns:
        The Markdown text and the names of the files.

    Raises:
        UserError: There are no results, or they are of older prompts than the newest.
    """
    results = read_current(workdir)
    text = f"### {title(results)}\n\n{in_words(results)}\n\n"
    text += f"{markdown(CLASS_HEADER, class_rows(results))}\n"
    if confused := confused_rows(results):
        text += f"\nMost often confused:\n\n{markdown(CONFUSED_HEADER, confused)}\n"
    classes = pd.DataFrame(results["per_class"]).T.reindex(columns=["n", "accuracy", "f1"])
    table = classes.reset_index(names="class").rename(columns={"n": "images"}).map(inert)
    # Class names of folders may have bytes that are not Unicode.
    contents: dict[str, str | bytes | None] = {
        TABLE_FILE: text.encode(errors="backslashreplace"),
        CSV_FILE: table.to_csv(index=False).encode(errors="backslashreplace"),
        FIGURE_FILE: draw_confusion(results),
        TRAINING_FILE: draw_training(workdir),
        RELIABILITY_FILE: draw_reliability(results),
    }
    written = {name: content for name, content in contents.items() if content is not None}
    for name, content in written.items():
        write_whole(workdir / name, content)
    return text, [*written]


def title(results: Results) -> str:
    """Return a title such as "DPT on emoji". A folder of images has its own name."""
    return f"{ROWS[results['method']].label} on {results['of']['data']['name']}"


def in_words(results: Results) -> str:
    """Describe the training and the scores in one sentence."""
    words, of = "", results["of"]
    if trained := results["trained_on"]:
        words = f"Trained on {(of['trained_on'] or {'name': trained['dataset']})['name']}, "
        words += f"{shots_in_words(results['shots'])}, seed {results['seed']}"
        words += f", to {progress}: " if (progress := unfinished(of)) else ": "
    words += f"{100 * results['accuracy']:.1f} % of {results['n']:,} test images right"
    if results["method"] != ZERO_SHOT:
        words += f" (zero-shot {100 * results['zero_shot_accuracy']:.1f} %)"
    return (
        f"{words}, balanced accuracy {100 * results['balanced_accuracy']:.1f} %, macro F1 "
        f"{results['macro_f1']:.3f}, expected calibration error "
        f"{100 * results['calibration']['ece']:.1f} %."
    )


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
    wrong = [
        (count, name, other, one["n"])
        for name, one in results["per_class"].items()
        for other, count in one["predicted"].items()
        if other != name
    ]
    wrong.sort(key=lambda mistake: -mistake[0])
    return [[name, other, f"{count} of {n}"] for count, name, other, n in wrong[:CONFUSIONS_LISTED]]


def confusion_matrix(classes: Mapping[str, Any]) -> np.ndarray:
    """Return (C, C): the percentage of the images of class i for which class j is predicted."""
    counts = pd.DataFrame({name: one["predicted"] for name, one in classes.items()}, dtype=float).T
    images = pd.Series({name: max(one["n"], 1) for name, one in classes.items()})
    matrix = counts.reindex(index=list(classes), columns=list(classes)).fillna(0)
    return 100 * matrix.div(images, axis=0).to_numpy()


def draw_confusion(results: Results) -> bytes:
    """Draw the confusion matrix."""
    classes = results["per_class"]
    return figures.draw_confusion(confusion_matrix(classes), list(classes), title(results))


def draw_training(workdir: epath.Path) -> bytes | None:
    """Draw the training's curves; None if nothing was trained in the workdir."""
    records = read_metrics(workdir)
    if not records:
        return None
    config = load_config(workdir)
    method = METHODS[config.method]
    if len(records) == 1 and not method.in_towers:  # of a classifier in closed form
        return None
    rates = {"visual_lr": "visual prompt"} if method.visual else {}
    if TEXT in method.parts:
        rates["text_lr"] = "text prompt"
    guidance_epochs = config.loss.guidance_epochs if len(rates) == 2 else 0
    if CLASSIFIER in method.parts:
        rates["classifier_lr"] = "classifier"
    if WEIGHTS in method.parts:
        rates["weights_lr"] = "weights"
    return figures.draw_training(records, rates, guidance_epochs)


def draw_reliability(results: Results) -> bytes:
    """Draw accuracy against confidence."""
    zero_shot = {ZERO_SHOT: results["zero_shot_calibration"]}
    return figures.draw_reliability(zero_shot | {results["method"]: results["calibration"]})
