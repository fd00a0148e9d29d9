"""One picture an image: its likeliest classes, and what the prompted CLIP looks at."""

from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
from etils import epath

from dpt_jax.methods import ROWS, ZERO_SHOT
from dpt_jax.predictor.attention import Sight
from dpt_jax.report.figures import printable, pyplot, save, shortened


def draw_sight(sight: Sight, title: str, method: str, file: epath.Path | BinaryIO) -> None:
    """Draw the image, its classes with bars, and the maps over it."""
    plt = pyplot()
    columns = max(4, len(sight.class_maps))
    rows = 2 if sight.class_maps else 1
    figure = plt.figure(figsize=(2.8 * columns, 3.1 * rows + 0.4), layout="constrained")
    room = 30 * columns
    title = printable(title)
    figure.suptitle(
        title if len(title) <= room else f"…{title[1 - room :]}", fontsize=10, x=0.01, ha="left"
    )
    grid = figure.add_gridspec(rows, columns)
    axes = figure.add_subplot(grid[0, 0])
    axes.imshow(sight.image)
    axes.set_title("image", fontsize=9)
    axes.set_axis_off()
    draw_classes(figure.add_subplot(grid[0, 1]), sight, method)
    looked: list[tuple[str, np.ndarray | None]] = [("plain CLIP", sight.plain)]
    if sight.prompted is not None:
        looked.append((f"with {ROWS[method].label}", sight.prompted))
    places = [grid[0, 2 + i] for i in range(len(looked))]
    _draw_maps(
        figure,
        places,
        sight.image,
        looked,
        "class token's attention to a patch\n(% of the largest)",
    )
    if sight.class_maps:
        places = [grid[1, i] for i in range(len(sight.class_maps))]
        names = [f"prompt of “{shortened(name, 18)}”" for name in sight.classes]
        maps = list(zip(names, sight.class_maps, strict=True))
        _draw_maps(
            figure, places, sight.image, maps, "CAVPT's attention to a patch\n(% of the largest)"
        )
    save(figure, file, dpi=110)


def draw_classes(axes: Any, sight: Sight, method: str) -> None:
    """Draw the probability of each class by the method, a bar, and by plain CLIP, a mark."""
    at = np.arange(len(sight.classes))
    axes.barh(
        at,
        100 * sight.probability,
        color=ROWS["vpt"].colour,
        height=0.55,
        label=ROWS[method].label,
    )
    if method != ZERO_SHOT:
        axes.plot(100 * sight.zero_shot, at, "kD", markersize=4, label=ROWS[ZERO_SHOT].label)
    for y, name, probability in zip(at, sight.classes, sight.probability, strict=True):
        axes.text(
            1,
            y - 0.36,
            f"{shortened(name, 24)}  {100 * probability:.1f} %",
            fontsize=8,
            va="bottom",
        )
    axes.set_ylim(len(at) - 0.5, -0.9)
    axes.set_yticks([])
    axes.set_xlim(0, 100)
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
    """Draw maps with their names over the greyed image.

    Each is scaled to its own largest patch, which its title gives: on one scale, a map that gathers
    in a patch would leave those that are spread out black.
    """
    grey = np.repeat(image.mean(-1, keepdims=True), 3, -1).astype(np.uint8)
    all_axes, drawn = [], None
    for place, (name, one) in zip(places, maps, strict=True):
        axes = figure.add_subplot(place)
        all_axes.append(axes)
        axes.set_axis_off()
        axes.imshow(grey, alpha=1.0 if one is not None else 0.3)
        if one is None:
            axes.set_title(name, fontsize=9)
            axes.text(0.5, 0.5, "not among the classes\nthat CAVPT looked at",
                      transform=axes.transAxes, fontsize=8,
                      ha="center", va="center")  # fmt: skip
            continue
        most = float(one.max()) or 1.0
        axes.set_title(
            f"{name}\n{100 * one.sum():.0f} % on patches, up to {100 * most:.0f} % on one",
            fontsize=8.5,
        )
        box = (-0.5, image.shape[1] - 0.5, image.shape[0] - 0.5, -0.5)
        drawn = axes.imshow(
            100 * one / most, cmap="inferno", vmin=0, vmax=100, alpha=0.72, extent=box
        )
    if drawn is not None:
        bar = figure.colorbar(drawn, ax=all_axes, shrink=0.75, aspect=15, pad=0.02)
        bar.set_label(label, fontsize=8)
        bar.ax.tick_params(labelsize=7)
