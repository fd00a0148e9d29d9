"""The report on one run: tables and figures as PNG, or one page.

The page embeds its pictures and needs no network. Its template is page.html.
"""

import base64
import io
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jinja2
import numpy as np
import pandas as pd
from etils import epath

from dpt_jax.config import flat, shots_in_words
from dpt_jax.data.records import Dataset
from dpt_jax.evaluation.results import Results, read_current, softmax
from dpt_jax.io import write_whole
from dpt_jax.logging import Progress
from dpt_jax.methods import ROWS, ZERO_SHOT
from dpt_jax.predictor import Predictor, Sight, describe, nearest_words
from dpt_jax.report import csv_of, markdown
from dpt_jax.training.metrics import read_metrics
from dpt_jax.training.saved import saved_prompts, unfinished
from dpt_jax.training.setup import prepare
from dpt_jax.training.workdir import load_config, source_of

TABLE_FILE, CSV_FILE, PAGE_FILE = "report.md", "report.csv", "report.html"
FIGURE_FILE, TRAINING_FILE = "report.png", "training.png"
RELIABILITY_FILE = "reliability.png"
CONFUSIONS_LISTED = 10
ANSWERS = 4  # pictures of the correct answers and of the wrong ones, of different classes
NEAREST = 3  # words
IN_A_ROW = 4  # panels of a figure
LONGEST_NAME = 30  # letters of a class name
MOST_NAMED_CLASSES = 60  # of a confusion matrix; more do not fit
STYLE: Any = {
    "axes.grid": True,
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "grid.alpha": 0.3,
    "legend.fontsize": 8,
    "savefig.dpi": 110,
    "text.parse_math": False,  # names may have dollar signs
}


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
    # The evaluation may have used another type and template than the training.
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
    """Return the table of `by_class` as text."""
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
    drawn = {FIGURE_FILE: draw_confusion(percent, title(results))}
    if len(records := read_metrics(workdir)) > 1:
        drawn[TRAINING_FILE] = draw_training(records)
    calibrations = {ZERO_SHOT: results["zero_shot_calibration"]}
    calibrations[results["method"]] = results["calibration"]
    return drawn | {RELIABILITY_FILE: draw_reliability(calibrations)}


def classify(predictor: Predictor, dataset: Dataset) -> pd.DataFrame:
    """Return index, label, predicted and zero_shot class, and confidence of the test images."""
    paths = [example.path for example in dataset.test]
    labels = np.array([example.label for example in dataset.test])
    rows = []
    with Progress("report", -(-len(paths) // predictor.rows)) as progress:
        answers = predictor.answers(paths, dataset.read, skip_unreadable=True)
        for batch, outputs in progress.track(answers):
            probability = softmax(outputs.logits)
            found = {
                "index": batch["index"],
                "label": labels[batch["index"]],
                "predicted": probability.argmax(-1),
                "zero_shot": outputs.zero_shot.logits.argmax(-1),
                "confidence": probability.max(-1),
            }
            rows.append(pd.DataFrame(found)[batch["weight"] > 0])
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
            drawn.append((draw_sight(sight, path, learned.method), caption))
        yield f"{headline}, most confident first", drawn


def draw_confusion(percent: pd.DataFrame, title: str) -> bytes:
    """Draw a matrix (C, C) in percent of the true class, which is the row."""
    side = min(max(0.28 * len(percent) + 2.5, 4.5), 16)
    figure, axes = pyplot().subplots(figsize=(side + 1, side))
    image = axes.imshow(percent, cmap="cividis", vmin=0, vmax=100)
    figure.colorbar(image, label="images of the true class (%)", shrink=0.8)
    axes.grid(False)
    unit = " (number)"
    if len(percent) <= MOST_NAMED_CLASSES:
        unit, names = "", [printable(name) for name in percent]
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(xlabel=f"predicted class{unit}", ylabel=f"true class{unit}", title=title)
    return png(figure)


def draw_training(records: Sequence[Mapping[str, float]]) -> bytes:
    """Draw loss, accuracy and learning rates by epoch, from the records of metrics.jsonl."""
    metrics = pd.DataFrame(records).set_index("epoch")
    rates = metrics.filter(regex="_lr$").rename(columns=lambda key: key.removesuffix("_lr"))
    accuracies = {"accuracy": "training", "val_accuracy": "validation"}
    percent = 100 * metrics.filter(items=accuracies).rename(columns=accuracies)
    figure, axes = pyplot().subplots(1, 3, figsize=(10.5, 3))
    metrics.loss.plot(ax=axes[0], ylabel="training loss (nats)")
    percent.plot(ax=axes[1], ylabel="accuracy (%)")
    rates.plot(ax=axes[2], ylabel="learning rate", logy=True, style=["-", "--", "-.", ":"])
    # The default labels of a logarithmic axis are formulas, see STYLE.
    axes[2].yaxis.set_major_formatter("{x:g}")
    axes[2].yaxis.set_minor_formatter("")
    for one in axes:
        one.xaxis.get_major_locator().set_params(integer=True)
    return png(figure)


def draw_reliability(calibrations: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Draw accuracy against confidence, and the images at each, for `calibration`s by method."""
    methods = len(calibrations)
    figure, grid = pyplot().subplots(
        2, methods, figsize=(4.2 * methods, 4.6), squeeze=False, sharex=True, sharey="row",
        height_ratios=[3, 1],
    )  # fmt: skip
    for (above, below), (method, found) in zip(grid.T, calibrations.items(), strict=True):
        bins, colour = pd.DataFrame(found["bins"]), ROWS[method].colour
        above.plot([0, 100], [0, 100], "k--", linewidth=1)
        above.plot(100 * bins.confidence, 100 * bins.accuracy, color=colour, marker="o",
                   clip_on=False)  # fmt: skip
        title = f"{ROWS[method].label}: expected calibration error {100 * found['ece']:.1f} %"
        above.set(title=title, xlim=(0, 100), ylim=(0, 100))
        below.bar(100 * bins.confidence, bins.images, width=4, color=colour)
        below.set_xlabel("probability of the answer (%)")
    grid[0, 0].set_ylabel("correct answers (%)")
    grid[1, 0].set_ylabel("images")
    return png(figure)


def draw_sight(sight: Sight, title: str, method: str) -> bytes:
    """Draw the image, bars of its classes, and the attention maps, as PNG.

    Maps are in percent of their largest patch: on a common scale, a map with one strong patch would
    leave the others black. The titles have the absolute numbers.
    """
    maps: list[tuple[str, np.ndarray | None]] = [("zero-shot CLIP", sight.plain)]
    if sight.prompted is not None:
        maps.append((f"with {ROWS[method].label}", sight.prompted))
    names = (f"CAVPT's prompt of “{printable(name, 18)}”" for name in sight.classes)
    maps += zip(names, sight.class_maps, strict=False)  # for methods without CAVPT, there are none
    rows = -(-(2 + len(maps)) // IN_A_ROW)
    size = (2.8 * IN_A_ROW, 3.1 * rows + 0.4)
    figure, grid = pyplot().subplots(rows, IN_A_ROW, figsize=size, squeeze=False)
    figure.suptitle(printable(title[-30 * IN_A_ROW :], len(title)), fontsize=10, x=0.01, ha="left")
    for axes in grid.flat:
        axes.set_axis_off()
    first, second, *others = grid.flat
    first.imshow(sight.image)
    first.set_title("image", fontsize=8.5)
    _draw_classes(second, sight, method)
    grey = np.repeat(sight.image.mean(-1, keepdims=True), 3, -1).astype(np.uint8)
    height, width = grey.shape[:2]
    for axes, (name, attention) in zip(others, maps, strict=False):
        axes.imshow(grey, alpha=1.0 if attention is not None else 0.3)
        numbers = "none: not among the top-k classes"
        if attention is not None:
            most = float(attention.max()) or 1.0
            numbers = f"{100 * attention.sum():.0f} % on patches, up to {100 * most:.0f} % on one"
            drawn = axes.imshow(100 * attention / most, cmap="inferno", vmin=0, vmax=100, alpha=0.7,
                                extent=(-0.5, width - 0.5, height - 0.5, -0.5))  # fmt: skip
        axes.set_title(f"{name}\n{numbers}", fontsize=8.5)
    bar = figure.colorbar(drawn, ax=grid, shrink=0.6, aspect=30, pad=0.01)
    bar.set_label("attention to a patch (% of the largest)", fontsize=8)
    return png(figure)


def _draw_classes(axes: Any, sight: Sight, method: str) -> None:
    """Draw the probability of each class: a bar for the method, a mark for zero-shot CLIP."""
    axes.set_axis_on()
    at, percent = np.arange(len(sight.classes)), 100 * sight.probability
    axes.barh(at, percent, color=ROWS["vpt"].colour, height=0.55, label=ROWS[method].label)
    if method != ZERO_SHOT:
        axes.plot(100 * sight.zero_shot, at, "kD", markersize=4, label=ROWS[ZERO_SHOT].label)
    for y, name, p in zip(at, sight.classes, percent, strict=True):
        axes.text(1, y - 0.36, f"{printable(name, 24)}  {p:.1f} %", fontsize=8, va="bottom")
    axes.set(xlim=(0, 100), ylim=(len(at) - 0.5, -0.9), yticks=[])
    axes.set_xlabel("probability (%)", fontsize=8)
    axes.legend(fontsize=7, loc="lower right")


def pyplot() -> Any:
    """Return matplotlib.pyplot with a backend that needs no screen."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot

    matplotlib.rcParams.update(STYLE)
    return matplotlib.pyplot


def png(figure: Any) -> bytes:
    """Return a figure as PNG, and close it."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    pyplot().close(figure)
    return file.getvalue()


def printable(text: str, longest: int = LONGEST_NAME) -> str:
    """Return a text on one line, with invalid Unicode escaped, shortened to `longest` letters."""
    text = " ".join(text.encode("utf-8", "backslashreplace").decode().split())
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
