"""Figures of runs. Methods have one colour and marker each, wherever they are drawn."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np

# In the order of tables and legends.
LABELS = {"zeroshot": "zero-shot", "coop": "CoOp", "vpt": "VPT", "vlp": "VLP", "dpt": "DPT"}
# Okabe and Ito's colours, which colour-blind readers can tell apart; markers tell them apart in print.
STYLES = {
    "zeroshot": ("#000000", ""),
    "coop": ("#E69F00", "o"),
    "vpt": ("#56B4E9", "s"),
    "vlp": ("#009E73", "^"),
    "dpt": ("#D55E00", "D"),
}
COLUMNS = 4
MOST_NAMED_CLASSES = 60


class Point(NamedTuple):
    """Accuracy in percent, mean and standard deviation over seeds, at a number of shots."""

    shots: int
    mean: float
    deviation: float


# {method: its points by shots}; of zero-shot there is one.
Curves = Mapping[str, Sequence[Point]]


def pyplot() -> Any:
    """matplotlib.pyplot, drawing to files alone."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def draw_curves(panels: Mapping[str, Curves], file: pathlib.Path) -> None:
    """A grid of panels of accuracy against shots, each with its title."""
    plt = pyplot()
    columns = min(len(panels), COLUMNS)
    rows = -(-len(panels) // columns)
    size = (max(3.6 * columns, 5), 3.2 * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axes, (title, curves) in zip(grid.flat, panels.items(), strict=False):
        draw_panel(axes, title, curves)
    for unused in grid.flat[len(panels) :]:
        unused.set_axis_off()
    grid.flat[0].legend(fontsize=8)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def draw_panel(axes: Any, title: str, curves: Curves) -> None:
    """Accuracy against shots: a curve a method with bars of one standard deviation, a line for zero-shot."""
    for i, (method, points) in enumerate(curves.items()):
        colour, marker = STYLES[method]
        if method == "zeroshot":
            axes.axhline(points[0].mean, color=colour, linestyle="--", linewidth=1, label=LABELS[method])
            continue
        # A small shift keeps the bars of the methods apart.
        at = [point.shots * 2 ** (0.05 * (i - len(curves) / 2)) for point in points]
        means, deviations = [point.mean for point in points], [point.deviation for point in points]
        axes.errorbar(
            at,
            means,
            deviations,
            color=colour,
            marker=marker,
            markersize=4,
            capsize=2,
            linewidth=1.2,
            label=LABELS[method],
        )
    ticks = sorted({point.shots for points in curves.values() for point in points if point.shots})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(shots) for shots in ticks])
    axes.set_xlim(ticks[0] / 1.3, ticks[-1] * 1.3)
    axes.minorticks_off()
    axes.set_xlabel("shots (training images a class)")
    axes.set_ylabel("test accuracy (%)")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)


def draw_confusion(matrix: np.ndarray, classnames: Sequence[str], title: str, file: pathlib.Path) -> None:
    """(C, C) in percent of the true class, a row each; names stand beside it where there is room for them."""
    plt = pyplot()
    side = min(max(0.28 * len(classnames) + 2.5, 4.5), 16)
    figure, axes = plt.subplots(figsize=(side + 1, side), layout="constrained")
    image = axes.imshow(matrix, cmap="cividis", vmin=0, vmax=100)
    figure.colorbar(image, ax=axes, label="images of the true class (%)", shrink=0.8)
    numbered = len(classnames) > MOST_NAMED_CLASSES
    if not numbered:
        axes.set_xticks(range(len(classnames)), classnames, rotation=90, fontsize=8)
        axes.set_yticks(range(len(classnames)), classnames, fontsize=8)
    axes.set_xlabel(f"predicted class{' (number)' if numbered else ''}")
    axes.set_ylabel(f"true class{' (number)' if numbered else ''}")
    axes.set_title(title, fontsize=10)
    figure.savefig(file, dpi=120)
    plt.close(figure)


class Sight(NamedTuple):
    """What a prompted CLIP sees in one image: its likeliest classes, best first, and attention over the patches.

    Maps are (grid, grid), parts of 1; what they lack to 1 in sum goes to other tokens than patches.
    """

    image: np.ndarray  # (size, size, 3) uint8
    classes: Sequence[str]
    probability: np.ndarray  # of these classes
    zero_shot: np.ndarray  # of these classes, by plain CLIP
    plain: np.ndarray  # the class token's in the last block, without prompts
    prompted: np.ndarray | None  # the same with prompts; None where the images see none
    class_maps: Mapping[str, np.ndarray | None]  # CAVPT's by class; None for a class that it did not look at


def draw_sight(sight: Sight, title: str, method: str, file: pathlib.Path | BinaryIO) -> None:
    """The image, its classes with bars, and the maps over it."""
    plt = pyplot()
    columns = max(4, len(sight.class_maps))
    rows = 2 if sight.class_maps else 1
    figure = plt.figure(figsize=(2.7 * columns, 3.1 * rows + 0.4), layout="constrained")
    figure.suptitle(_shortened(title, 30 * columns), fontsize=10, x=0.01, ha="left")
    grid = figure.add_gridspec(rows, columns)
    axes = figure.add_subplot(grid[0, 0])
    axes.imshow(sight.image)
    axes.set_title("image", fontsize=9)
    axes.set_axis_off()
    draw_classes(figure.add_subplot(grid[0, 1]), sight, method)
    looked = {"plain CLIP": sight.plain}
    if sight.prompted is not None:
        looked[f"with {LABELS[method]}"] = sight.prompted
    _draw_maps(
        figure,
        [grid[0, 2 + i] for i in range(len(looked))],
        sight.image,
        looked,
        "class token's attention\na patch (%)",
    )
    if sight.class_maps:
        places = [grid[1, i] for i in range(len(sight.class_maps))]
        maps = {f"prompt of “{_shortened(name, 16)}”": one for name, one in sight.class_maps.items()}
        _draw_maps(figure, places, sight.image, maps, "CAVPT's attention\na patch (%)")
    figure.savefig(file, dpi=110, format="png")
    plt.close(figure)


def draw_classes(axes: Any, sight: Sight, method: str) -> None:
    """The probability of each class by the method, as a bar, and by plain CLIP, as a mark."""
    at = np.arange(len(sight.classes))
    axes.barh(at, 100 * sight.probability, color=STYLES["vpt"][0], height=0.55, label=LABELS[method])
    if method != "zeroshot":
        axes.plot(100 * sight.zero_shot, at, "kD", markersize=4, label=LABELS["zeroshot"])
    for y, name, probability in zip(at, sight.classes, sight.probability, strict=True):
        axes.text(0, y - 0.36, f"{_shortened(name, 24)}  {100 * probability:.1f} %", fontsize=8, va="bottom")
    axes.set_ylim(len(at) - 0.5, -0.9)
    axes.set_yticks([])
    axes.set_xlim(0, 100)
    axes.set_xlabel("probability (%)", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, loc="lower right")


def _draw_maps(
    figure: Any, places: Sequence[Any], image: np.ndarray, maps: Mapping[str, np.ndarray | None], label: str
) -> None:
    """Maps over the greyed image, with one scale for all of them."""
    shown = [one for one in maps.values() if one is not None]
    most = 100 * max((float(one.max()) for one in shown), default=1.0)
    grey = np.repeat(image.mean(-1, keepdims=True), 3, -1).astype(np.uint8)
    all_axes, drawn = [], None
    for place, (name, one) in zip(places, maps.items(), strict=True):
        axes = figure.add_subplot(place)
        all_axes.append(axes)
        axes.set_axis_off()
        axes.imshow(grey, alpha=1.0 if one is not None else 0.3)
        if one is None:
            axes.set_title(name, fontsize=9)
            axes.text(0.5, 0.5, "not among the classes\nthat CAVPT looked at", transform=axes.transAxes, fontsize=8,
                      ha="center", va="center")  # fmt: skip
            continue
        axes.set_title(f"{name}\n{100 * one.sum():.0f} % on patches", fontsize=9)
        box = (-0.5, image.shape[1] - 0.5, image.shape[0] - 0.5, -0.5)
        drawn = axes.imshow(100 * one, cmap="inferno", vmin=0, vmax=most, alpha=0.72, extent=box)
    if drawn is not None:
        bar = figure.colorbar(drawn, ax=all_axes, shrink=0.75, aspect=15, pad=0.02)
        bar.set_label(label, fontsize=8)
        bar.ax.tick_params(labelsize=7)


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"…{text[1 - most:]}"
