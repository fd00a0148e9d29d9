"""The report on one run: tables and figures, or one page.

The page embeds its pictures and needs no network. Its template is page.html.
"""

import base64
import pathlib
from collections.abc import Iterator

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
from dpt_jax.methods import ROWS, ZERO_SHOT
from dpt_jax.predictor import Predictor, describe, nearest_words
from dpt_jax.report import figures
from dpt_jax.report.frame import csv_of, markdown
from dpt_jax.training.initial_prompts import saved_prompts
from dpt_jax.training.metrics import read_metrics
from dpt_jax.training.record import unfinished
from dpt_jax.training.setup import prepare
from dpt_jax.training.workdir import load_config, source_of

TABLE_FILE, CSV_FILE, PAGE_FILE = "report.md", "report.csv", "report.html"
FIGURE_FILE, TRAINING_FILE = "report.png", "training.png"
RELIABILITY_FILE = "reliability.png"
CONFUSIONS_LISTED = 10
ANSWERS = 4  # pictures of the correct answers and of the wrong ones, of different classes
NEAREST = 3  # words


def report_run(workdir: epath.Path) -> tuple[str, list[str]]:
    """Write the report on a run into its workdir; return its Markdown and its file names."""
    results = read_current(workdir)
    text = f"### {title(results)}\n\n{in_words(results)}\n\n{markdown(class_table(results))}\n"
    confused = confused_table(results)
    if len(confused):
        text += f"\nMost often confused:\n\n{markdown(confused)}\n"
    contents = {
        TABLE_FILE: text.encode(errors="backslashreplace"),
        CSV_FILE: csv_of(by_class(results)),
        **draw(results, workdir),
    }
    for name, content in contents.items():
        write_whole(workdir / name, content)
    return text, [*contents]


def write_page(workdir: epath.Path) -> epath.Path:
    """Write report.html into a workdir, and return its path."""
    results = read_current(workdir)
    config, tested = load_config(workdir), results["of"]["settings"]
    # An evaluation may have used others than the training.
    config.update(dtype=tested["dtype"], dataset={"template": tested["dataset.template"]})
    experiment = prepare(config)
    images = min(config.eval.batch_size, len(experiment.dataset.test))
    batch = -(-images // jax.local_device_count())
    predictor = Predictor(experiment, saved_prompts(experiment, source_of(workdir)), batch)
    answers = classify(predictor, experiment.dataset)
    learned, drawn, words = predictor.model.config, draw(results, workdir), None
    if "text" in predictor.prompts and not learned.conditioned:
        words = nearest_words(predictor, NEAREST)
    templates = jinja2.FileSystemLoader(pathlib.Path(__file__).parent)
    environment = jinja2.Environment(loader=templates, autoescape=True)
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


def by_class(results: Results) -> pd.DataFrame:
    """Return images, accuracy and F1 of each class."""
    scores = pd.DataFrame.from_dict(results["per_class"], orient="index")
    scores = scores.reindex(columns=["n", "accuracy", "f1"]).rename(columns={"n": "images"})
    return scores.reset_index(names="class")


def class_table(results: Results) -> pd.DataFrame:
    """Return the same as text."""
    scores = by_class(results)
    accuracy = (100 * scores.accuracy.astype(float)).map("{:.1f}".format).replace("nan", "")
    shown = {"class": scores["class"], "images": scores.images.map("{:,}".format)}
    return pd.DataFrame({**shown, "accuracy (%)": accuracy, "F1": scores.f1.map("{:.3f}".format)})


def confused_table(results: Results) -> pd.DataFrame:
    """Return a row for each of the most frequent mistakes."""
    counts = confusion(results).stack()
    is_wrong = counts.index.get_level_values(0) != counts.index.get_level_values(1)
    most = counts[is_wrong & (counts > 0)].nlargest(CONFUSIONS_LISTED)
    rows = [
        (name, other, f"{count:.0f} of {results['per_class'][name]['n']}")
        for (name, other), count in most.items()
    ]
    return pd.DataFrame(rows, columns=["true class", "predicted class", "images"])


def confusion(results: Results) -> pd.DataFrame:
    """Return (C, C): the number of images of the row's class that are predicted as the column's."""
    classes = results["per_class"]
    counts = pd.DataFrame({name: one["predicted"] for name, one in classes.items()}, dtype=float).T
    return counts.reindex(index=list(classes), columns=list(classes)).fillna(0)


def draw(results: Results, workdir: epath.Path) -> dict[str, bytes]:
    """Return the figures of a run by file name; there is one of the training from two epochs on."""
    counts = confusion(results)
    percent = 100 * counts.div(counts.sum(axis=1).clip(lower=1), axis=0)
    drawn = {FIGURE_FILE: figures.draw_confusion(percent, title(results))}
    if len(records := read_metrics(workdir)) > 1:
        drawn[TRAINING_FILE] = figures.draw_training(records)
    calibrations = {ZERO_SHOT: results["zero_shot_calibration"]}
    calibrations[results["method"]] = results["calibration"]
    return drawn | {RELIABILITY_FILE: figures.draw_reliability(calibrations)}


def classify(predictor: Predictor, dataset: Dataset) -> pd.DataFrame:
    """Return index, label, predicted and zero_shot class, and confidence of the test images."""
    paths = [example.path for example in dataset.test]
    labels = np.array([example.label for example in dataset.test])
    rows = []
    with Progress("report", -(-len(paths) // predictor.rows)) as progress:
        for batch, outputs in predictor.answers(paths, dataset.read, skip_unreadable=True):
            probability = softmax(outputs.logits)
            found = {
                "index": batch["index"],
                "label": labels[batch["index"]],
                "predicted": probability.argmax(-1),
                "zero_shot": outputs.zero_shot.logits.argmax(-1),
                "confidence": probability.max(-1),
            }
            rows.append(pd.DataFrame(found)[batch["weight"] > 0])
            progress.advance()
    return pd.concat(rows, ignore_index=True)


def pictures(
    predictor: Predictor, dataset: Dataset, answers: pd.DataFrame
) -> Iterator[tuple[str, list[tuple[bytes, str]]]]:
    """Yield headings, each with heat maps and captions of the most confident answers.

    With prompts, the correct answers are those that zero-shot CLIP gets wrong.
    """
    learned, names = predictor.model.config, predictor.classnames
    is_correct, heading = answers.predicted == answers.label, "Correct"
    shown = is_correct
    if learned.learns:
        heading += " where zero-shot CLIP is wrong"
        shown = is_correct & (answers.zero_shot != answers.label)
    for headline, among in ((heading, answers[shown]), ("Wrong", answers[~is_correct])):
        among = among.sort_values("confidence", ascending=False, kind="stable")
        chosen, drawn = among.drop_duplicates("label").head(ANSWERS), []
        paths = [dataset.test[index].path for index in chosen["index"]]
        sights = describe(predictor, [dataset.read(path) for path in paths])
        for path, one, sight in zip(paths, chosen.itertuples(), sights, strict=True):
            caption = f"{path}: {names[one.label]}"
            if one.predicted != one.label:
                caption += f", predicted {names[one.predicted]}"
            elif learned.learns:
                caption += f", zero-shot CLIP predicts {names[one.zero_shot]}"
            drawn.append((figures.draw_sight(sight, path, learned.method), caption))
        yield f"{headline}, most confident first", drawn
