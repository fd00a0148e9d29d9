"""Figures of one run: confusion matrix, training, reliability."""

from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
from etils import epath

from dpt_jax.methods import ROWS, ZERO_SHOT
from dpt_jax.report.figures import MOST_LETTERS, pyplot, save, shortened

MOST_NAMED_CLASSES = 60


def draw_confusion(
    matrix: np.ndarray, classnames: Sequence[str], title: str, file: epath.Path | BinaryIO
) -> None:
    """Draw a matrix (C, C) in percent of the true class, a row for each.

    Class names stand beside it where there is room for them.
    """
    plt = pyplot()
    side = min(max(0.28 * len(classnames) + 2.5, 4.5), 16)
    figure, axes = plt.subplots(figsize=(side + 1, side), layout="constrained")
    image = axes.imshow(matrix, cmap="cividis", vmin=0, vmax=100)
    figure.colorbar(image, ax=axes, label="images of the true class (%)", shrink=0.8)
    numbered = len(classnames) > MOST_NAMED_CLASSES
    if not numbered:
        names = [shortened(name, MOST_LETTERS) for name in classnames]
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel(f"predicted class{' (number)' if numbered else ''}")
    axes.set_ylabel(f"true class{' (number)' if numbered else ''}")
    axes.set_title(title, fontsize=10)
    save(figure, file, dpi=120)


def draw_training(
    records: Sequence[Mapping[str, float]], guidance_epochs: int, file: epath.Path | BinaryIO
) -> None:
    """Draw loss, training accuracy and learning rates by epoch.

    records: those of metrics.jsonl, one an epoch. guidance_epochs: where the loss changes its form,
    0 if it does not.
    """
    plt = pyplot()
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3), layout="constrained")
    epochs = [record["epoch"] for record in records]
    blue, orange = ROWS["vpt"].colour, ROWS["dpt"].colour
    axes[0].plot(epochs, [record["loss"] for record in records], color=orange)
    axes[0].set_ylabel("training loss (nats)")
    axes[1].plot(epochs, [100 * record["accuracy"] for record in records], color=orange)
    axes[1].set_ylabel("training accuracy (%)")
    for name, colour, dashes in (("visual", blue, "-"), ("text", "#000000", "--")):
        rates = [record[f"{name}_lr"] for record in records]
        axes[2].plot(epochs, rates, color=colour, linestyle=dashes, label=f"{name} prompt")
    axes[2].set_yscale("log")
    # Matplotlib's own labels of a logarithmic axis are formulas, which `pyplot` leaves unread.
    axes[2].yaxis.set_major_formatter("{x:g}")
    axes[2].yaxis.set_minor_formatter("")
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
    save(figure, file, dpi=110)


def draw_reliability(
    calibrations: Mapping[str, Mapping[str, Any]], file: epath.Path | BinaryIO
) -> None:
    """Draw how often answers are right against how sure the method is, and how many are so sure.

    calibrations: {method: what scores.calibration gives}.
    """
    plt = pyplot()
    size = (4.2 * len(calibrations), 4.6)
    ratios = {"height_ratios": [3, 1]}
    figure, grid = plt.subplots(
        2, len(calibrations), figsize=size, squeeze=False, sharex=True, sharey="row",
        layout="constrained",
        gridspec_kw=ratios,
    )  # fmt: skip
    for (above, below), (method, found) in zip(grid.T, calibrations.items(), strict=True):
        colour = ROWS[method].colour if method != ZERO_SHOT else "#777777"
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
            confidence,
            accuracy,
            color=colour,
            marker="o",
            label=ROWS[method].label,
            clip_on=False,
        )
        above.set_title(
            f"{ROWS[method].label}: expected calibration error {100 * found['ece']:.1f} %",
            fontsize=10,
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
    save(figure, file, dpi=110)
