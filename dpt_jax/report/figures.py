"""Figures, as PNG: accuracy against shots, and those of one run.

Colours of methods are distinguishable to colour-blind readers, and markers in print.
"""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dpt_jax.config import shots_in_words
from dpt_jax.methods import ROWS, ZERO_SHOT
from dpt_jax.report.frame import HARMONIC, in_order

if TYPE_CHECKING:
    from dpt_jax.predictor import Sight

COLUMNS = 4  # of a grid of panels
LONGEST_NAME = 30  # letters of a class name
HALF_COLOURS = {"base": "#0072B2", "new": "#E69F00", HARMONIC: "#999999"}
MOST_NAMED_CLASSES = 60  # of a confusion matrix; more do not fit
IN_A_COLUMN = 14  # methods of a legend
STYLE: Any = {
    "axes.grid": True,
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "grid.alpha": 0.3,
    "legend.fontsize": 8,
    "savefig.dpi": 110,
    "text.parse_math": False,  # names may have dollar signs
}


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


def draw_curves(panels: Mapping[str, pd.DataFrame]) -> bytes:
    """Draw a grid of titled panels of accuracy against shots."""
    columns = min(len(panels), COLUMNS)
    rows = -(-len(panels) // columns)
    legend: dict[str, Any] = {}
    size = (max(3.6 * columns, 5) + 2.5, 3.2 * rows)
    figure, grid = pyplot().subplots(rows, columns, figsize=size, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (title, cells) in zip(grid.flat, panels.items(), strict=False):
        draw_panel(axes, title, cells)
        handles, labels = axes.get_legend_handles_labels()
        legend |= zip(labels, handles, strict=True)
    columns = -(-len(legend) // IN_A_COLUMN)
    figure.legend(legend.values(), legend, loc="outside right center", ncols=columns)
    return png(figure)


def draw_panel(axes: Any, title: str, cells: pd.DataFrame) -> None:
    """Draw curves with bars of one standard deviation, in percent; zero-shot is a line."""
    methods = [name for name in ROWS if name in {*cells.method}]
    for i, method in enumerate(methods):
        own, style = cells[cells.method == method].sort_values("shots"), ROWS[method]
        common = {"color": style.colour, "label": style.label}
        if method == ZERO_SHOT:
            axes.axhline(own.accuracy_mean.iloc[0], linestyle="--", linewidth=1, **common)
            continue
        # A small shift keeps the bars of the methods apart.
        shots = own.shots * 2 ** (0.05 * (i - len(methods) / 2))
        axes.errorbar(shots, own.accuracy_mean, own.get("spread"), marker=style.marker,
                      markersize=4, capsize=2, linewidth=1.2, **common)  # fmt: skip
    ticks = sorted({*cells.shots})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(shots) for shots in ticks])
    axes.set_xlim(ticks[0] / 1.3, ticks[-1] * 1.3)
    axes.minorticks_off()
    axes.set(xlabel="shots (training images per class)", ylabel="test accuracy (%)", title=title)


def draw_halves(cells: pd.DataFrame) -> bytes:
    """Draw bars of base classes, new classes and their harmonic mean, one panel a dataset.

    cells: dataset, method, shots, classes, and accuracy_mean in percent.
    """
    datasets = cells.dataset.unique()
    size = (8, 3.2 * len(datasets))
    figure, grid = pyplot().subplots(len(datasets), 1, figsize=size, squeeze=False)
    for axes, dataset in zip(grid[:, 0], datasets, strict=True):
        own = in_order(cells[cells.dataset == dataset], ["method", "shots"])
        table = own.pivot_table("accuracy_mean", ["method", "shots"], "classes", sort=False)
        table = table.reindex(columns=[*HALF_COLOURS])
        table.index = [
            f"{ROWS[method].label}\n{shots_in_words(shots)}" if shots else ROWS[method].label
            for method, shots in table.index
        ]
        table.plot.bar(ax=axes, color=HALF_COLOURS, width=0.8, rot=0, legend=False, fontsize=8)
        for name, bars in zip(HALF_COLOURS, axes.containers, strict=True):
            # No seed may have both halves, and then there is no harmonic mean.
            labels = table[name].map("{:.0f}".format).replace("nan", "")
            axes.bar_label(bars, labels, fontsize=7)
        axes.set(title=f"{dataset}: base to new classes", ylabel="test accuracy (%)")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return png(figure)


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
    """Draw accuracy against confidence, and the number of images at each confidence.

    calibrations: {method: what `metrics.calibration` returns}.
    """
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


def draw_sight(sight: "Sight", title: str, method: str) -> bytes:
    """Draw the image, bars of its classes, and the attention maps, as PNG.

    Maps are in percent of their largest patch: on a common scale, a map with one strong patch would
    leave the others black. The titles have the absolute numbers.
    """
    maps: list[tuple[str, np.ndarray | None]] = [("zero-shot CLIP", sight.plain)]
    if sight.prompted is not None:
        maps.append((f"with {ROWS[method].label}", sight.prompted))
    names = (f"CAVPT's prompt of “{printable(name, 18)}”" for name in sight.classes)
    maps += zip(names, sight.class_maps, strict=False)  # for methods without CAVPT, there are none
    rows = -(-(2 + len(maps)) // COLUMNS)
    size = (2.8 * COLUMNS, 3.1 * rows + 0.4)
    figure, grid = pyplot().subplots(rows, COLUMNS, figsize=size, squeeze=False)
    figure.suptitle(printable(title[-30 * COLUMNS :], len(title)), fontsize=10, x=0.01, ha="left")
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


def _draw_classes(axes: Any, sight: "Sight", method: str) -> None:
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
