"""Figures of runs. Methods have one colour and marker each, wherever they are drawn."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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
