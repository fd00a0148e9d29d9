"""The report on one run: tables and figures, or one page.

The page embeds its pictures and needs no network. Its template is page.html.
"""

import base64
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jinja2
import numpy as np
import pandas as pd
from etils import epath

from dpt_jax.config import flat, shots_in_words
from dpt_jax.data.records import Dataset
from dpt_jax.evaluation.metrics import softmax
from dpt_jax.evaluation.results import Results, read_current
from dpt_jax.io import write_whole
from dpt_jax.logging import Progress
from dpt_jax.methods import METHODS, ROWS, TEXT, ZERO_SHOT
from dpt_jax.predictor.explain import describe, nearest_words
from dpt_jax.predictor.predictor import Predictor
from dpt_jax.report import figures
from dpt_jax.report.tables import csv_of, markdown
from dpt_jax.training.initial_prompts import saved_prompts
from dpt_jax.training.metrics import read_metrics
from dpt_jax.training.record import unfinished
from dpt_jax.training.setup import prepare
from dpt_jax.training.workdir import load_config, source_of

TABLE_FILE, CSV_FILE, PAGE_FILE = "report.md", "report.csv", "report.html"
FIGURE_FILE, TRAINING_FILE = "report.png", "training.png"
RELIABILITY_FILE = "reliability.png"
CONFUSIONS_LISTED = 10
ANSWERS = 4  # pictures of the correct answers and of the wrong ones
NEAREST = 3  # words


def report_run(workdir: epath.Path) -> tuple[str, list[str]]:
    """Write the tables and figures of a run into its workdir.

    Returns:
        The Markdown text and the names of the files.

    Raises:
        UserError: There are no results, or they are not of the newest prompts.
    """
    results = read_current(workdir)
    text = f"### {title(results)}\n\n{in_words(results)}\n\n{markdown(class_table(results))}\n"
    confused = confused_table(results)
    if len(confused):
        text += f"\nMost often confused:\n\n{markdown(confused)}\n"
    classes = pd.DataFrame(results["per_class"]).T.reindex(columns=["n", "accuracy", "f1"])
    contents = {
        TABLE_FILE: text.encode(errors="backslashreplace"),
        CSV_FILE: csv_of(classes.reset_index(names="class").rename(columns={"n": "images"})),
        **draw(results, workdir),
    }
    for name, content in contents.items():
        write_whole(workdir / name, content)
    return text, [*contents]


def write_page(workdir: epath.Path) -> epath.Path:
    """Write report.html into a workdir and return its path.

    Raises:
        UserError: The run has no results, or its data or CLIP cannot be loaded.
    """
    results = read_current(workdir)
    config, tested = load_config(workdir), results["of"]["settings"]
    # An evaluation may have used others than the training.
    config.update(dtype=tested["dtype"], dataset={"template": tested["dataset.template"]})
    experiment = prepare(config)
    images = min(config.eval.batch_size, len(experiment.dataset.test))
    batch = -(-images // jax.local_device_count())
    predictor = Predictor(experiment, saved_prompts(experiment, source_of(workdir)), batch)
    answers, before, after = classify(predictor, experiment.dataset)
    learned, drawn = predictor.model.config, draw(results, workdir)
    clouds = {"before: zero-shot CLIP": (before, predictor.texts.frozen)}
    words = None
    if not learned.conditioned:  # otherwise each image has its own texts, without common axes
        clouds[f"after: {ROWS[learned.method].label}"] = (after, predictor.encode_text())
        words = nearest_words(predictor, NEAREST) if "text" in predictor.prompts else None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent), autoescape=True
    )
    environment.filters["base64"] = lambda png: base64.b64encode(png).decode()
    page = environment.get_template("page.html").render(
        title=title(results),
        in_words=in_words(results),
        training=drawn.get(TRAINING_FILE),
        answers=[*pictures(predictor, experiment.dataset, answers)],
        classes=class_table(results),
        confused=confused_table(results),
        confusion=drawn[FIGURE_FILE],
        reliability=drawn[RELIABILITY_FILE],
        features=figures.draw_features(clouds, answers.label.to_numpy(), predictor.classnames),
        words=words,
        conditioned=learned.conditioned,
        settings=pd.DataFrame(flat(config.to_dict()).items(), columns=["key", "value"]),
    )
    write_whole(workdir / PAGE_FILE, page.encode(errors="backslashreplace"))
    return workdir / PAGE_FILE


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


def class_table(results: Results) -> pd.DataFrame:
    """Return a row for each class."""
    rows = [
        {
            "class": name,
            "images": f"{one['n']:,}",
            "accuracy (%)": "" if one["accuracy"] is None else f"{100 * one['accuracy']:.1f}",
            "F1": f"{one['f1']:.3f}",
        }
        for name, one in results["per_class"].items()
    ]
    return pd.DataFrame(rows, columns=["class", "images", "accuracy (%)", "F1"])


def confused_table(results: Results) -> pd.DataFrame:
    """Return a row for each of the most frequent mistakes."""
    wrong = [
        (count, name, other, one["n"])
        for name, one in results["per_class"].items()
        for other, count in one["predicted"].items()
        if other != name
    ]
    wrong.sort(key=lambda mistake: -mistake[0])
    return pd.DataFrame(
        [(name, other, f"{count} of {n}") for count, name, other, n in wrong[:CONFUSIONS_LISTED]],
        columns=["true class", "predicted class", "images"],
    )


def confusion_matrix(classes: Mapping[str, Any]) -> np.ndarray:
    """Return (C, C): the percentage of the images of class i for which class j is predicted."""
    counts = pd.DataFrame({name: one["predicted"] for name, one in classes.items()}, dtype=float).T
    images = pd.Series({name: max(one["n"], 1) for name, one in classes.items()})
    matrix = counts.reindex(index=list(classes), columns=list(classes)).fillna(0)
    return 100 * matrix.div(images, axis=0).to_numpy()


def draw(results: Results, workdir: epath.Path) -> dict[str, bytes]:
    """Return the figures of a run by file name."""
    classes, calibrations = results["per_class"], {ZERO_SHOT: results["zero_shot_calibration"]}
    calibrations[results["method"]] = results["calibration"]
    drawn = {
        FIGURE_FILE: figures.draw_confusion(
            confusion_matrix(classes), list(classes), title(results)
        ),
        TRAINING_FILE: draw_training(workdir),
        RELIABILITY_FILE: figures.draw_reliability(calibrations),
    }
    return {name: png for name, png in drawn.items() if png}


def draw_training(workdir: epath.Path) -> bytes | None:
    """Draw the training's curves; None if a workdir has fewer than two epochs."""
    records = read_metrics(workdir)
    if len(records) < 2:
        return None
    config = load_config(workdir)
    method = METHODS[config.method]
    # CLIP's guidance is a term of the loss of methods that learn on both sides.
    guided = method.visual and TEXT in method.parts
    return figures.draw_training(records, config.loss.guidance_epochs if guided else 0)


def classify(predictor: Predictor, dataset: Dataset) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Classify the readable test images.

    Returns:
        A row for each of N images: path, label, predicted and zero_shot (class indices), and
        confidence, the probability of the predicted class; the frozen image features (N, E); and
        the prompted ones (N, E).
    """
    paths = [example.path for example in dataset.test]
    labels = np.array([example.label for example in dataset.test])
    rows, before, after = [], [], []
    with Progress("report", -(-len(paths) // predictor.rows)) as progress:
        for batch, outputs in predictor.answers(paths, dataset.read, skip_unreadable=True):
            probability, readable = softmax(outputs.logits), batch["weight"] > 0
            found = {
                "path": [paths[i] for i in batch["index"]],
                "label": labels[batch["index"]],
                "predicted": probability.argmax(-1),
                "zero_shot": outputs.zero_shot.logits.argmax(-1),
                "confidence": probability.max(-1),
            }
            rows.append(pd.DataFrame(found)[readable])
            before.append(outputs.zero_shot.features[readable])
            after.append(outputs.features[readable])
            progress.advance()
    return pd.concat(rows, ignore_index=True), np.concatenate(before), np.concatenate(after)


def pictures(
    predictor: Predictor, dataset: Dataset, answers: pd.DataFrame
) -> Iterator[tuple[str, list[tuple[bytes, str]]]]:
    """Yield headings, each with heat maps and captions of the most confident answers.

    With prompts, the correct answers are those that zero-shot CLIP gets wrong.
    """
    learned, names = predictor.model.config, predictor.classnames
    correct = answers[answers.predicted == answers.label]
    wrong = answers[answers.predicted != answers.label]
    heading = "Correct"
    if learned.learns:
        heading += " where zero-shot CLIP is wrong"
        correct = correct[correct.zero_shot != correct.label]
    for headline, among in ((heading, correct), ("Wrong", wrong)):
        chosen, drawn = most_confident(among), []
        sights = describe(predictor, [dataset.read(path) for path in chosen.path])
        for one, sight in zip(chosen.itertuples(), sights, strict=True):
            caption = f"{one.path}: {names[one.label]}"
            if one.predicted != one.label:
                caption += f", predicted {names[one.predicted]}"
            elif learned.learns:
                caption += f", zero-shot CLIP predicts {names[one.zero_shot]}"
            drawn.append((figures.draw_sight(sight, one.path, learned.method), caption))
        yield f"{headline}, most confident first", drawn


def most_confident(answers: pd.DataFrame) -> pd.DataFrame:
    """Return the most confident answers, one per class before a second of any."""
    order = answers.sort_values("confidence", ascending=False, kind="stable")
    again = order.duplicated("label")
    return pd.concat([order[~again], order[again]]).head(ANSWERS)
