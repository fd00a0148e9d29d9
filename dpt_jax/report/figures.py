"""Figures, as PNG: accuracy against shots, and those of one run.

Colours of methods are distinguishable to colour-blind readers, and markers in print.
"""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dpt_jax.config import shots_in_words
from dpt_jax.methods import METHODS, ROWS, ZERO_SHOT
from dpt_jax.report.frame import HARMONIC, in_order

if TYPE_CHECKING:
    from dpt_jax.predictor.explain import Sight

COLUMNS = 4  # of a grid of panels
LONGEST_NAME = 30  # letters of a class name
HALF_COLOURS = {"base": "#0072B2", "new": "#E69F00", HARMONIC: "#999999"}
# Learning rates in metrics.jsonl: the part, colour and line of each.
RATES = {
    "visual_lr": ("visual prompt", ROWS["vpt"].colour, "-"),
    "text_lr": ("text prompt", "#000000", "--"),
    "classifier_lr": ("classifier", ROWS["zslp"].colour, "-"),
    "weights_lr": ("weights", ROWS["cliplora"].colour, "-"),
}
MOST_NAMED_CLASSES = 60  # of a confusion matrix; more do not fit
IN_A_COLUMN = 14  # methods of a legend
STYLE: Any = {
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


def printable(text: str, longest: int = 10**6) -> str:
    """Return a text on one line, with invalid Unicode escaped, shortened to `longest` letters."""
    text = " ".join(text.encode("utf-8", "backslashreplace").decode().split())
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def draw_curves(panels: Mapping[str, pd.DataFrame]) -> bytes:
    """Draw a grid of titled panels of accuracy against shots."""
    columns = min(len(panels), COLUMNS)
    rows = -(-len(panels) // columns)
    size = (max(3.6 * columns, 5), 3.2 * rows)
    figure, grid = pyplot().subplots(rows, columns, figsize=size, squeeze=False)
    for axes, (title, cells) in zip(grid.flat, panels.items(), strict=False):
        draw_panel(axes, title, cells)
    for unused in grid.flat[len(panels) :]:
        unused.set_axis_off()
    handles, labels = grid.flat[0].get_legend_handles_labels()
    columns = -(-len(labels) // IN_A_COLUMN)
    figure.set_figwidth(size[0] + 1.7 * columns)
    figure.legend(handles, labels, loc="outside right center", ncols=columns)
    return png(figure)


def draw_panel(axes: Any, title: str, cells: pd.DataFrame) -> None:
    """Draw curves with bars of one standard deviation; zero-shot is a line.

    cells: method, shots, accuracy_mean and perhaps spread, in percent.
    """
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
    axes.grid()


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
        axes.grid(axis="y")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return png(figure)


def draw_confusion(matrix: np.ndarray, classnames: Sequence[str], title: str) -> bytes:
    """Draw a matrix (C, C) in percent of the true class, which is the row."""
    side = min(max(0.28 * len(classnames) + 2.5, 4.5), 16)
    figure, axes = pyplot().subplots(figsize=(side + 1, side))
    image = axes.imshow(matrix, cmap="cividis", vmin=0, vmax=100)
    figure.colorbar(image, label="images of the true class (%)", shrink=0.8)
    numbered = len(classnames) > MOST_NAMED_CLASSES
    if not numbered:
        names = [printable(name, LONGEST_NAME) for name in classnames]
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
    unit = " (number)" if numbered else ""
    axes.set(xlabel=f"predicted class{unit}", ylabel=f"true class{unit}", title=title)
    return png(figure)


def draw_training(records: Sequence[Mapping[str, float]], guidance_epochs: int) -> bytes:
    """Draw loss, training accuracy and learning rates by epoch.

    Args:
        records: Those of metrics.jsonl, one per epoch.
        guidance_epochs: Epochs before the loss has fewer terms; 0 if it never changes.
    """
    metrics = pd.DataFrame(records).set_index("epoch")
    figure, axes = pyplot().subplots(1, 3, figsize=(10.5, 3))
    axes[0].plot(metrics.loss, color=ROWS["dpt"].colour)
    axes[1].plot(100 * metrics.accuracy, color=ROWS["dpt"].colour, label="training")
    if "val_accuracy" in metrics:
        axes[1].plot(100 * metrics.val_accuracy, color=ROWS["vpt"].colour, label="validation")
        axes[1].legend()
    for key, (label, colour, line) in RATES.items():
        if key in metrics:
            axes[2].plot(metrics[key], color=colour, linestyle=line, label=label)
    axes[2].set_yscale("log")
    # The default labels of a logarithmic axis are formulas, see STYLE.
    axes[2].yaxis.set_major_formatter("{x:g}")
    axes[2].yaxis.set_minor_formatter("")
    axes[2].legend()
    labels = ("training loss (nats)", "accuracy (%)", "learning rate")
    for one, label in zip(axes, labels, strict=True):
        one.set(xlabel="epoch", ylabel=label)
        one.xaxis.get_major_locator().set_params(integer=True)
        one.grid()
    if 0 < guidance_epochs < metrics.index[-1]:
        for one in axes[:2]:
            one.axvline(guidance_epochs, color="#000000", linestyle=":", linewidth=1)
        axes[0].annotate("guidance ends", (guidance_epochs, axes[0].get_ylim()[1]), xytext=(4, -4),
                         textcoords="offset points", fontsize=8, va="top")  # fmt: skip
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
        colour = ROWS[method].colour if method != ZERO_SHOT else "#777777"
        bins = pd.DataFrame(found["bins"])
        confidence, accuracy, label = 100 * bins.confidence, 100 * bins.accuracy, ROWS[method].label
        above.plot([0, 100], [0, 100], color="#000000", linestyle="--", linewidth=1,
                   label="perfect calibration")  # fmt: skip
        above.vlines(confidence, confidence, accuracy, color=colour, alpha=0.5)
        above.plot(confidence, accuracy, color=colour, marker="o", label=label, clip_on=False)
        above.set_title(f"{label}: expected calibration error {100 * found['ece']:.1f} %")
        above.legend()
        below.bar(confidence, bins.images, width=4, color=colour)
        below.set_xlabel("probability of the answer (%)")
        above.grid()
        below.grid()
    grid[0, 0].set(ylabel="correct answers (%)", xlim=(0, 100), ylim=(0, 100))
    grid[1, 0].set_ylabel("images")
    return png(figure)


def draw_features(
    clouds: Mapping[str, tuple[np.ndarray, np.ndarray]],
    label: np.ndarray,
    classnames: Sequence[str],
) -> bytes:
    """Draw image features (points) and text features (stars) on the images' principal axes.

    Args:
        clouds: By title of the panel, features of N images (N, E) and of C texts (C, E).
        label: True class indices (N,) of the images.
        classnames: Names of the classes. Those with the most images are coloured, others grey.
    """
    colours = [*(method.colour for method in METHODS.values()), "#F0E442"][:9]
    shown = np.argsort(-np.bincount(label, minlength=len(classnames)), kind="stable")
    styles = [*zip(shown.tolist(), colours, "osv^DPX<>", strict=False)]
    rest = ~np.isin(label, shown[: len(styles)])
    edge = {"edgecolors": "#000000", "linewidths": 1}
    size = (5.2 * len(clouds) + 1.6, 4.6)
    figure, grid = pyplot().subplots(1, len(clouds), figsize=size, squeeze=False)
    for axes, (title, features) in zip(grid.flat, clouds.items(), strict=True):
        images, texts, variance = principal_axes(*features)
        others = "images of other classes" if rest.any() else ""
        axes.scatter(*images[rest].T, s=8, color="#CCCCCC", label=others)
        for c, colour, marker in styles:
            name = printable(classnames[c], LONGEST_NAME)
            axes.scatter(*images[label == c].T, s=18, color=colour, marker=marker, label=name)
        for c, colour, _ in styles:
            axes.scatter(*texts[c], s=220, color=colour, marker="*", **edge)
        first, second = (f"{100 * share:.0f} %" for share in variance)
        axes.set(title=title, xlabel=f"first axis ({first} of the images' variance)",
                 ylabel=f"second axis ({second})", xticks=[], yticks=[])  # fmt: skip
    last = grid.flat[-1]
    last.scatter([], [], s=120, color="#FFFFFF", marker="*", label="text of a class", **edge)
    last.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return png(figure)


def principal_axes(
    images: np.ndarray, texts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Project features (N, E) of images and (C, E) of texts onto the images' principal axes.

    Images and texts are centred separately, since CLIP keeps them apart.

    Returns:
        Images (N, 2), texts (C, 2), and each axis's share (2,) of the images' variance.
    """
    centred = images - images.mean(0)
    _, deviations, axes = np.linalg.svd(centred, full_matrices=False)
    # A single image, or features on a line, have fewer than two axes.
    two, variance = np.zeros((2, images.shape[1]), images.dtype), np.zeros(2)
    two[: len(axes[:2])] = axes[:2]
    variance[: len(deviations[:2])] = deviations[:2] ** 2 / (float((deviations**2).sum()) or 1.0)
    return centred @ two.T, (texts - texts.mean(0)) @ two.T, variance


def draw_sight(sight: "Sight", title: str, method: str) -> bytes:
    """Draw the image, bars of its classes, and the attention maps, as PNG."""
    columns = max(4, len(sight.class_maps))
    rows = 2 if sight.class_maps else 1
    size = (2.8 * columns, 3.1 * rows + 0.4)
    figure, grid = pyplot().subplots(rows, columns, figsize=size, squeeze=False)
    title, longest = printable(title), 30 * columns
    shown = title if len(title) <= longest else f"…{title[1 - longest :]}"
    figure.suptitle(shown, fontsize=10, x=0.01, ha="left")
    for axes in grid.flat:
        axes.set_axis_off()
    grid[0, 0].imshow(sight.image)
    grid[0, 0].set_title("image", fontsize=9)
    _draw_classes(grid[0, 1], sight, method)
    maps = [("zero-shot CLIP", sight.plain)]
    if sight.prompted is not None:
        maps.append((f"with {ROWS[method].label}", sight.prompted))
    _draw_maps(grid[0, 2:], sight.image, maps, "class token's attention")
    if sight.class_maps:
        names = [f"prompt of “{printable(name, 18)}”" for name in sight.classes]
        own = [*zip(names, sight.class_maps, strict=True)]
        _draw_maps(grid[1], sight.image, own, "CAVPT's attention")
    return png(figure)


def _draw_classes(axes: Any, sight: "Sight", method: str) -> None:
    """Draw the probability of each class: a bar for the method, a mark for zero-shot CLIP."""
    axes.set_axis_on()
    at = np.arange(len(sight.classes))
    percent = 100 * sight.probability
    axes.barh(at, percent, color=ROWS["vpt"].colour, height=0.55, label=ROWS[method].label)
    if method != ZERO_SHOT:
        axes.plot(100 * sight.zero_shot, at, "kD", markersize=4, label=ROWS[ZERO_SHOT].label)
    for y, name, p in zip(at, sight.classes, percent, strict=True):
        axes.text(1, y - 0.36, f"{printable(name, 24)}  {p:.1f} %", fontsize=8, va="bottom")
    axes.set(xlim=(0, 100), ylim=(len(at) - 0.5, -0.9), yticks=[])
    axes.set_xlabel("probability (%)", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, loc="lower right")


def _draw_maps(
    grid: np.ndarray,
    image: np.ndarray,
    maps: Sequence[tuple[str, np.ndarray | None]],
    label: str,
) -> None:
    """Draw maps over the grey image, in percent of their largest patch.

    On a common scale, a map with one strong patch would leave the others black. The titles have
    the absolute numbers.
    """
    grey = np.repeat(image.mean(-1, keepdims=True), 3, -1).astype(np.uint8)
    box = (-0.5, image.shape[1] - 0.5, image.shape[0] - 0.5, -0.5)
    grid, drawn = grid[: len(maps)], None
    for axes, (name, one) in zip(grid, maps, strict=True):
        axes.imshow(grey, alpha=1.0 if one is not None else 0.3)
        axes.set_title(name, fontsize=8.5)
        if one is None:
            axes.text(0.5, 0.5, "not among the top-k\nclasses of CAVPT", transform=axes.transAxes,
                      fontsize=8, ha="center", va="center")  # fmt: skip
            continue
        most = float(one.max()) or 1.0
        numbers = f"{100 * one.sum():.0f} % on patches, up to {100 * most:.0f} % on one"
        axes.set_title(f"{name}\n{numbers}", fontsize=8.5)
        drawn = axes.imshow(
            100 * one / most, cmap="inferno", vmin=0, vmax=100, alpha=0.72, extent=box
        )
    if drawn is not None:
        bar = grid[0].figure.colorbar(drawn, ax=grid, shrink=0.75, aspect=15, pad=0.02)
        bar.set_label(f"{label} to a patch\n(% of the largest)", fontsize=8)
        bar.ax.tick_params(labelsize=7)
