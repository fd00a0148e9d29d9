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
MOST_LETTERS = 30  # of a class's name


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

    matplotlib.rcParams["text.parse_math"] = False  # names are no formulas, whatever is in them

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
            axes.axhline(
                points[0].mean, color=colour, linestyle="--", linewidth=1, label=LABELS[method]
            )
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


def draw_confusion(
    matrix: np.ndarray, classnames: Sequence[str], title: str, file: pathlib.Path | BinaryIO
) -> None:
    """(C, C) in percent of the true class, a row each; names stand beside it where there is room for them."""
    plt = pyplot()
    side = min(max(0.28 * len(classnames) + 2.5, 4.5), 16)
    figure, axes = plt.subplots(figsize=(side + 1, side), layout="constrained")
    image = axes.imshow(matrix, cmap="cividis", vmin=0, vmax=100)
    figure.colorbar(image, ax=axes, label="images of the true class (%)", shrink=0.8)
    numbered = len(classnames) > MOST_NAMED_CLASSES
    if not numbered:
        names = [_shortened(name, MOST_LETTERS) for name in classnames]
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel(f"predicted class{' (number)' if numbered else ''}")
    axes.set_ylabel(f"true class{' (number)' if numbered else ''}")
    axes.set_title(title, fontsize=10)
    figure.savefig(file, dpi=120, format="png")
    plt.close(figure)


def draw_training(
    records: Sequence[Mapping[str, float]], guidance_epochs: int, file: pathlib.Path | BinaryIO
) -> None:
    """Loss, training accuracy and learning rates by epoch.

    records: those of metrics.jsonl, one an epoch. guidance_epochs: where the loss changes its form, 0 if it does not.
    """
    plt = pyplot()
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3), layout="constrained")
    epochs = [record["epoch"] for record in records]
    blue, orange = STYLES["vpt"][0], STYLES["dpt"][0]
    axes[0].plot(epochs, [record["loss"] for record in records], color=orange)
    axes[0].set_ylabel("training loss (nats)")
    axes[1].plot(epochs, [100 * record["accuracy"] for record in records], color=orange)
    axes[1].set_ylabel("training accuracy (%)")
    for name, colour, dashes in (("visual", blue, "-"), ("text", "#000000", "--")):
        rates = [record[f"{name}_lr"] for record in records]
        axes[2].plot(epochs, rates, color=colour, linestyle=dashes, label=f"{name} prompt")
    axes[2].set_yscale("log")
    axes[2].set_ylabel("learning rate")
    axes[2].legend(fontsize=8)
    for one in axes:
        one.set_xlabel("epoch")
        one.grid(alpha=0.3)
    if 0 < guidance_epochs < epochs[-1]:
        for one in axes[:2]:
            one.axvline(guidance_epochs, color="#000000", linestyle=":", linewidth=1)
        axes[0].annotate("guidance ends", (guidance_epochs, axes[0].get_ylim()[1]), xytext=(4, -4),
                         textcoords="offset points", fontsize=8, va="top")  # fmt: skip
    figure.savefig(file, dpi=110, format="png")
    plt.close(figure)


def draw_reliability(
    calibrations: Mapping[str, Mapping[str, Any]], file: pathlib.Path | BinaryIO
) -> None:
    """For each method, how often its answers are right against how sure it is, and how many answers are so sure.

    calibrations: {method: what evaluate.calibration gives}.
    """
    plt = pyplot()
    size = (4.2 * len(calibrations), 4.6)
    ratios = {"height_ratios": [3, 1]}
    figure, grid = plt.subplots(
        2, len(calibrations), figsize=size, squeeze=False, sharex=True, sharey="row", layout="constrained",
        gridspec_kw=ratios,
    )  # fmt: skip
    for (above, below), (method, found) in zip(grid.T, calibrations.items(), strict=True):
        colour = STYLES[method][0] if method != "zeroshot" else "#777777"
        confidence = [100 * one["confidence"] for one in found["bins"]]
        accuracy = [100 * one["accuracy"] for one in found["bins"]]
        above.plot(
            [0, 100],
            [0, 100],
            color="#000000",
            linestyle="--",
            linewidth=1,
            label="as sure as right",
        )
        above.vlines(confidence, confidence, accuracy, color=colour, alpha=0.5)
        above.plot(
            confidence, accuracy, color=colour, marker="o", label=LABELS[method], clip_on=False
        )
        above.set_title(
            f"{LABELS[method]}: expected calibration error {100 * found['ece']:.1f} %", fontsize=10
        )
        above.grid(alpha=0.3)
        above.legend(fontsize=8, loc="upper left")
        below.bar(confidence, [one["images"] for one in found["bins"]], width=4, color=colour)
        below.set_xlabel("probability of the answer (%)")
        below.grid(alpha=0.3)
    grid[0, 0].set_ylabel("answers that are right (%)")
    grid[0, 0].set_xlim(0, 100)
    grid[0, 0].set_ylim(0, 100)
    grid[1, 0].set_ylabel("images")
    figure.savefig(file, dpi=110, format="png")
    plt.close(figure)


class Cloud(NamedTuple):
    """Image features (N, 2) and text features (C, 2) on two axes, and what part of the variance of the images each
    axis has."""

    images: np.ndarray
    texts: np.ndarray
    variance: np.ndarray


def draw_clouds(
    clouds: Mapping[str, Cloud],
    label: np.ndarray,
    classnames: Sequence[str],
    file: pathlib.Path | BinaryIO,
) -> None:
    """Images (points) and class texts (stars) beside each other before and after; of the classes with most images as
    many as can be told apart, the others grey.  label: (N,)."""
    plt = pyplot()
    colours = [colour for colour, _ in STYLES.values()] + ["#0072B2", "#CC79A7", "#F0E442"]
    counts = np.bincount(label, minlength=len(classnames))
    shown = np.argsort(-counts, kind="stable")[: len(colours)]
    figure, grid = plt.subplots(
        1, len(clouds), figsize=(5.2 * len(clouds) + 1.6, 4.6), squeeze=False, layout="constrained"
    )
    for axes, (title, cloud) in zip(grid.flat, clouds.items(), strict=True):
        rest = ~np.isin(label, shown)
        axes.scatter(
            *cloud.images[rest].T,
            s=8,
            color="#CCCCCC",
            label="images of other classes" if rest.any() else "",
        )
        for c, colour, marker in zip(shown, colours, "osv^DPX<", strict=False):
            axes.scatter(
                *cloud.images[label == c].T,
                s=18,
                color=colour,
                marker=marker,
                label=_shortened(classnames[c], MOST_LETTERS),
            )
        for c, colour in zip(shown, colours, strict=False):
            axes.scatter(
                *cloud.texts[c], s=220, color=colour, marker="*", edgecolors="#000000", linewidths=1
            )
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(f"first axis ({100 * cloud.variance[0]:.0f} % of the images' variance)")
        axes.set_ylabel(f"second axis ({100 * cloud.variance[1]:.0f} %)")
        axes.set_xticks([])
        axes.set_yticks([])
    grid.flat[-1].scatter(
        [], [], s=120, color="#FFFFFF", marker="*", edgecolors="#000000", label="text of a class"
    )
    grid.flat[-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.savefig(file, dpi=110, format="png")
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
    class_maps: Sequence[
        np.ndarray | None
    ]  # CAVPT's of these classes, if any; None for one that it did not look at


def draw_sight(sight: Sight, title: str, method: str, file: pathlib.Path | BinaryIO) -> None:
    """The image, its classes with bars, and the maps over it."""
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
        looked.append((f"with {LABELS[method]}", sight.prompted))
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
        names = [f"prompt of “{_shortened(name, 18)}”" for name in sight.classes]
        maps = list(zip(names, sight.class_maps, strict=True))
        _draw_maps(
            figure, places, sight.image, maps, "CAVPT's attention to a patch\n(% of the largest)"
        )
    figure.savefig(file, dpi=110, format="png")
    plt.close(figure)


def draw_classes(axes: Any, sight: Sight, method: str) -> None:
    """The probability of each class by the method, as a bar, and by plain CLIP, as a mark."""
    at = np.arange(len(sight.classes))
    axes.barh(
        at, 100 * sight.probability, color=STYLES["vpt"][0], height=0.55, label=LABELS[method]
    )
    if method != "zeroshot":
        axes.plot(100 * sight.zero_shot, at, "kD", markersize=4, label=LABELS["zeroshot"])
    for y, name, probability in zip(at, sight.classes, sight.probability, strict=True):
        axes.text(
            1,
            y - 0.36,
            f"{_shortened(name, 24)}  {100 * probability:.1f} %",
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
    """Maps with their names over the greyed image.

    Each is scaled to its own largest patch, which its title tells: on one scale, a map that gathers in a patch would
    leave those that are spread out black.
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
            axes.text(0.5, 0.5, "not among the classes\nthat CAVPT looked at", transform=axes.transAxes, fontsize=8,
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


def printable(text: str) -> str:
    """The text as it can be drawn: on one line, bytes that are not Unicode written out."""
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())


def _shortened(text: str, most: int) -> str:
    text = printable(text)
    return text if len(text) <= most else f"{text[: most - 1]}…"
