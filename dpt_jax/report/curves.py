"""Accuracy against shots, of many runs."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from dpt_jax.methods import ROWS, ZERO_SHOT
from dpt_jax.report.figures import pyplot, save

COLUMNS = 4


class Point(NamedTuple):
    """Accuracy in percent, mean and standard deviation over seeds, at a number of shots."""

    shots: int
    mean: float
    deviation: float


# {method: its points by shots}; of zero-shot there is one.
Curves = Mapping[str, Sequence[Point]]


def draw_curves(panels: Mapping[str, Curves], file: epath.Path) -> None:
    """Draw a grid of panels of accuracy against shots, each with its title."""
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
    save(figure, file, dpi=120)


def draw_panel(axes: Any, title: str, curves: Curves) -> None:
    """Draw accuracy against shots.

    A method is a curve with bars of one standard deviation, zero-shot a line.
    """
    for i, (method, points) in enumerate(curves.items()):
        style = ROWS[method]
        if method == ZERO_SHOT:
            axes.axhline(
                points[0].mean,
                color=style.colour,
                linestyle="--",
                linewidth=1,
                label=ROWS[method].label,
            )
            continue
        # A small shift keeps the bars of the methods apart.
        at = [point.shots * 2 ** (0.05 * (i - len(curves) / 2)) for point in points]
        means, deviations = [point.mean for point in points], [point.deviation for point in points]
        axes.errorbar(
            at,
            means,
            deviations,
            color=style.colour,
            marker=style.marker,
            markersize=4,
            capsize=2,
            linewidth=1.2,
            label=ROWS[method].label,
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
