"""Draws the emoji task, and accuracy against shots in both styles of drawings.

    python benchmarks/emoji_figure.py RUNS FILE.png

RUNS holds the runs of `make table-emoji`.
"""

import pathlib
import sys

# Started as a script, whose import path begins in this folder and not at the repository's root.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from typing import Any

from PIL import Image

from dpt_jax.config import method_config
from dpt_jax.data.dataset import load_dataset
from dpt_jax.methods import ZERO_SHOT
from dpt_jax.report.figures import draw_panel, pyplot
from dpt_jax.report.frame import results
from dpt_jax.report.runs import counted, summarise

SIDE, COLUMNS, LABEL = 66, 4, 170


def main(runs: str, file: str) -> None:
    """Draw the runs below the folder `runs` to `file`."""
    found = counted(results(runs))
    plt = pyplot()
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), width_ratios=(1.15, 1, 1))
    draw_task(left)
    for axes, name, title in (
        (middle, "emoji", "Twemoji, the style of the shots"),
        (right, "emoji_noto", "the same prompts on Noto, another style"),
    ):
        own = found[
            (found.dataset == name)
            & (found.classes == "all")
            & found.trained_classes.isin(["", "all"])
            & ((found.shots > 0) | (found.method == ZERO_SHOT))
        ]
        draw_panel(axes, title, summarise(own, ["method", "shots"]))
    middle.legend(fontsize=8)
    figure.savefig(file, dpi=110)


def draw_task(axes: Any) -> None:
    """Draw nine classes: images to train on, and two of the other style."""
    names = ("emoji", "emoji_noto")
    twemoji, noto = (load_dataset(method_config("dpt", name).dataset, 1) for name in names)
    labels = range(0, len(twemoji.classnames), 2)
    sheet = Image.new("RGB", (LABEL + (COLUMNS + 2) * SIDE + 20, len(labels) * SIDE), "white")
    for row, label in enumerate(labels):
        own = [twemoji.read(e.path) for e in twemoji.train if e.label == label][:COLUMNS]
        other = [noto.read(e.path) for e in noto.test if e.label == label][:2]
        for i, drawing in enumerate([*own, *other]):
            sheet.paste(drawing, (LABEL + i * SIDE + 20 * (i >= COLUMNS), row * SIDE))
        axes.text(
            LABEL - 8,
            (row + 0.5) * SIDE,
            twemoji.classnames[label],
            ha="right",
            va="center",
            fontsize=8,
        )
    axes.imshow(sheet)
    axes.set_axis_off()
    axes.set_title("9 of the 18 kinds of emoji: Twemoji, and Noto on the right", fontsize=10)


if __name__ == "__main__":
    main(*sys.argv[1:])
