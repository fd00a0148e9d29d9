"""The features of images and texts on two axes, before and after prompting."""

from collections.abc import Mapping, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np
from etils import epath

from dpt_jax.methods import METHODS
from dpt_jax.report.figures import MOST_LETTERS, pyplot, save, shortened


class Cloud(NamedTuple):
    """Image features (N, 2) and text features (C, 2) on two axes, and what part of the variance of
    the images each
    axis has."""

    images: np.ndarray
    texts: np.ndarray
    variance: np.ndarray


def draw_clouds(
    clouds: Mapping[str, Cloud],
    label: np.ndarray,
    classnames: Sequence[str],
    file: epath.Path | BinaryIO,
) -> None:
    """Draw images (points) and class texts (stars), before and after, beside each other.

    The classes with most images have colours, as many as can be told apart; the others are grey.
    label: (N,).
    """
    plt = pyplot()
    colours = [method.colour for method in METHODS.values()] + ["#0072B2", "#CC79A7", "#F0E442"]
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
                label=shortened(classnames[c], MOST_LETTERS),
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
    save(figure, file, dpi=110)
