"""A picture of an image: its most probable classes, and the attention of CLIP and the prompts."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dpt_jax.methods import ROWS, ZERO_SHOT
from dpt_jax.predictor.attention import Sight
from dpt_jax.report.figures import png, printable, pyplot


def draw_sight(sight: Sight, title: str, method: str) -> bytes:
    """Draw the image, bars of its classes, and the attention maps, as PNG."""
    columns = max(4, len(sight.class_maps))
    rows = 2 if sight.class_maps else 1
    figure = pyplot().figure(figsize=(2.8 * columns, 3.1 * rows + 0.4))
    title, longest = printable(title), 30 * columns
    shown = title if len(title) <= longest else f"…{title[1 - longest :]}"
    figure.suptitle(shown, fontsize=10, x=0.01, ha="left")
    grid = figure.add_gridspec(rows, columns)
    axes = figure.add_subplot(grid[0, 0])
    axes.imshow(sight.image)
    axes.set_title("image", fontsize=9)
    axes.set_axis_off()
    _draw_classes(figure.add_subplot(grid[0, 1]), sight, method)
    maps: list[tuple[str, np.ndarray | None]] = [("zero-shot CLIP", sight.plain)]
    if sight.prompted is not None:
        maps.append((f"with {ROWS[method].label}", sight.prompted))
    _draw_maps(
        figure,
        [grid[0, 2 + i] for i in range(len(maps))],
        sight.image,
        maps,
        "class token's attention",
    )
    if sight.class_maps:
        names = [f"prompt of “{printable(name, 18)}”" for name in sight.classes]
        maps = [*zip(names, sight.class_maps, strict=True)]
        _draw_maps(
            figure, [grid[1, i] for i in range(len(maps))], sight.image, maps, "CAVPT's attention"
        )
    return png(figure)


def _draw_classes(axes: Any, sight: Sight, method: str) -> None:
    """Draw the probability of each class: a bar for the method, a mark for zero-shot CLIP."""
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
    figure: Any,
    places: Sequence[Any],
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
    all_axes, drawn = [], None
    for place, (name, one) in zip(places, maps, strict=True):
        axes = figure.add_subplot(place)
        all_axes.append(axes)
        axes.set_axis_off()
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
        bar = figure.colorbar(drawn, ax=all_axes, shrink=0.75, aspect=15, pad=0.02)
        bar.set_label(f"{label} to a patch\n(% of the largest)", fontsize=8)
        bar.ax.tick_params(labelsize=7)
