"""Draws where each method puts its tokens, docs/family.png.

python tools/draw_family.py docs/family.png

What a panel shows follows from the table of methods and from the published settings, for a CLIP of
six layers in place of twelve.
"""

import pathlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

# Started as a script, whose import path begins in this folder and not at the repository's root.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Circle, Rectangle

from dpt_jax.config import method_config, prompt_config
from dpt_jax.methods import METHODS, Method, PromptConfig
from tools.draw_method import INK, Point, arrow, note

# A row of panels each: prompts in the text, prompts that end in each layer, and that carry on.
PANELS = (("coop", "cocoop", "kgcoop"), ("vpt", "vlp", "dpt"), ("ivlp", "maple", "promptsrc"))
LOSSES = {
    "coop": "CE(s z t̂ᵀ)",
    "cocoop": "CE(s z t̂ᵀ)",
    "kgcoop": "CE(s z t̂ᵀ) + distance of t̂ to t̄",
    "vpt": "CE(s f̂ Zᵀ)",
    "vlp": "CE(s f̂ t̂ᵀ); early CE of each tower",
    "dpt": "VLP's + CE of CAVPT's own logits",
    "ivlp": "CE(s f̂ t̂ᵀ)",
    "maple": "CE(s f̂ t̂ᵀ)",
    "promptsrc": "CE(s f̂ t̂ᵀ) + |t̂ − t̄| + |f̂ − z| + KL",
}
LAYERS, PUBLISHED_LAYERS = 6, 12
TOKEN, LAYER = "#B4BCC6", "#EEF0F3"
LEFT, STEP, SIDE = 1.55, 1.12, 0.36  # the first layer, from one to the next, side of a token
TEXT_ROW, IMAGE_ROW = 3.75, 1.1  # the lower edges of the two towers
OUT = LEFT + LAYERS * STEP + 0.25  # where the features are


class Row(NamedTuple):
    """Where a tower has its tokens: heights of the learned ones and of the others."""

    learned: tuple[float, float]
    others: tuple[float, float]


# The learned tokens of both towers face each other.
TEXT = Row((TEXT_ROW + 0.08, TEXT_ROW + 0.58), (TEXT_ROW + 1.08, TEXT_ROW + 1.58))
IMAGE = Row((IMAGE_ROW + 1.58, IMAGE_ROW + 1.08), (IMAGE_ROW + 0.58, IMAGE_ROW + 0.08))


def at(layer: int) -> float:
    """Return the left edge of the tokens of a layer, from 1."""
    return LEFT + (layer - 1) * STEP


def token(axes: Any, place: Point, colour: str, learned: bool) -> None:
    """Draw a token: filled if it is learned in this layer, or frozen; else it carries on."""
    fill = colour if learned else "white"
    axes.add_patch(
        Rectangle(place, SIDE, SIDE, facecolor=fill, edgecolor=colour, linewidth=1.6, zorder=3)
    )


def line(axes: Any, layer: int, height: float, colour: str) -> None:
    """Draw how a token goes from a layer to the next, or out of the last one."""
    middle = height + SIDE / 2
    stop = at(layer + 1) if layer < LAYERS else OUT - 0.2
    axes.plot([at(layer) + SIDE, stop], [middle, middle], color=colour, linewidth=1.6, zorder=2)


def tower(axes: Any, row: Row, base: float, name: str) -> None:
    """Draw the layers of a tower and the tokens that CLIP has anyway."""
    note(axes, (0.0, base + 1.01), name, fontsize=11, color=INK)
    for layer in range(1, LAYERS + 1):
        place = (at(layer) - 0.14, base - 0.03)
        axes.add_patch(Rectangle(place, SIDE + 0.28, 2.1, facecolor=LAYER, edgecolor="none"))
        for height in row.others:
            token(axes, (at(layer), height), TOKEN, learned=True)
            line(axes, layer, height, TOKEN)


def learned_tokens(axes: Any, row: Row, colour: str, layers: range, carry_on: bool) -> None:
    """Draw the tokens of a prompt that are learned in these layers.

    carry_on: whether they are ordinary tokens behind the last of them.
    """
    for layer in range(1, LAYERS + 1):
        own = layer in layers
        for height in row.learned:
            if own or (carry_on and layer > layers[-1]):
                token(axes, (at(layer), height), colour, own)
            if carry_on and layers[-1] <= layer < LAYERS:
                line(axes, layer, height, colour)


def feature(axes: Any, base: float, name: str, held_to: str, colour: str) -> None:
    """Draw what leaves a tower, and what a loss holds it to."""
    centre = base + 1.01
    circle = Circle((OUT + 0.12, centre), 0.34, facecolor="white", edgecolor=INK, linewidth=1.2)
    axes.add_patch(circle)
    note(axes, (OUT + 0.12, centre - 0.03), name, fontsize=11, color=INK, ha="center")
    if held_to:
        away = OUT + 1.3
        axes.plot([OUT + 0.46, away - 0.34], [centre] * 2, color=colour, lw=2, ls=(0, (2, 1.2)))
        axes.add_patch(Circle((away, centre), 0.34, facecolor=TOKEN, edgecolor="none"))
        note(axes, (away, centre - 0.03), held_to, fontsize=11, color=INK, ha="center")


def panel(axes: Any, method: Method) -> None:
    """Draw one method."""
    config = published(method.name)
    colour, draws = method.colour, MEETINGS.get(method.name)
    title = dict(fontsize=14, color=colour, fontweight="bold")
    note(axes, (0.0, 6.4), method.label, **title)
    note(axes, (0.0, 0.45), f"loss: {LOSSES[method.name]}", fontsize=10.5, color=INK)
    tower(axes, TEXT, TEXT_ROW, "text")
    tower(axes, IMAGE, IMAGE_ROW, "image")
    if config.text_length:
        learned_tokens(axes, TEXT, colour, range(1, depth(config.text_depth) + 1), True)
    if config.visual_length:
        last = depth(config.visual_depth) if config.visual_depth else LAYERS - bool(config.top_k)
        carry_on = 0 < config.visual_depth < PUBLISHED_LAYERS
        learned_tokens(axes, IMAGE, colour, range(1, last + 1), carry_on)
    weights = config.consistency
    text, image = ("t̂" if config.text_length else "Z"), ("f̂" if config.learns_images else "z")
    feature(axes, TEXT_ROW, text, "t̄" if weights.text else "", colour)
    feature(axes, IMAGE_ROW, image, "z" if weights.image else "", colour)
    if draws:
        draws(axes, colour)
    axes.set_xlim(-0.1, OUT + 1.75)
    axes.set_ylim(0.1, 6.75)
    axes.set_aspect("equal")
    axes.set_axis_off()


def published(method: str) -> PromptConfig:
    """Return the parts of a method as published."""
    return prompt_config(method_config(method, "imagenet"), 100, PUBLISHED_LAYERS)


def depth(layers: int) -> int:
    """Return how many of the drawn layers stand for so many of the published ones."""
    return max(1, layers * LAYERS // PUBLISHED_LAYERS)


def coupling(axes: Any, colour: str) -> None:
    """Draw how visual tokens are made of the text's."""
    for layer in range(1, depth(published("maple").text_depth) + 1):
        x = at(layer) + SIDE / 2
        arrow(axes, (x, TEXT.learned[0]), (x, IMAGE.learned[0] + SIDE))
    note(axes, (at(4) + 0.75, 3.48), "Wₗ", fontsize=11, color=INK)


def conditioning(axes: Any, colour: str) -> None:
    """Draw how the context depends on the image."""
    x, middle = at(1) + SIDE / 2, 3.48
    axes.plot([OUT + 0.12] * 2, [IMAGE_ROW + 1.35, middle], color=INK, linewidth=1.4)
    axes.plot([OUT + 0.12, x], [middle] * 2, color=INK, linewidth=1.4)
    arrow(axes, (x, middle), (x, TEXT.learned[0]))
    patch = Rectangle((at(3), middle - 0.26), 2.2, 0.52, facecolor=colour, edgecolor=INK, zorder=3)
    axes.add_patch(patch)
    note(axes, (at(3) + 1.1, middle - 0.02), "network", ha="center", fontsize=10.5, color=INK,
         zorder=4)  # fmt: skip


def class_aware(axes: Any, colour: str) -> None:
    """Draw the class-aware tokens of the last layer, made of image tokens and class texts."""
    x, middle = at(LAYERS), 3.48
    for height in IMAGE.learned:
        token(axes, (x, height), colour, learned=True)
    patch = Rectangle((x - 0.72, middle - 0.26), 1.8, 0.52, facecolor=colour, edgecolor=INK,
                      zorder=3)  # fmt: skip
    axes.add_patch(patch)
    note(axes, (x + 0.18, middle - 0.02), "CAVPT", ha="center", fontsize=10.5, color="white",
         zorder=4)  # fmt: skip
    arrow(axes, (OUT + 0.12, TEXT_ROW + 0.67), (x + 1.08, middle), bend=-0.3)
    arrow(axes, (at(5) + SIDE + 0.25, IMAGE.others[0] + SIDE / 2), (x - 0.45, middle - 0.26),
          dashed=True)  # fmt: skip
    arrow(axes, (x + 0.18, middle - 0.26), (x + 0.18, IMAGE.learned[0] + SIDE))


# What joins the two towers.
MEETINGS: dict[str, Callable[[Any, str], None]] = {
    "cocoop": conditioning,
    "maple": coupling,
    "dpt": class_aware,
}


def draw_legend(axes: Any) -> None:
    """Draw what the squares and lines mean."""
    axes.add_patch(Rectangle((0.0, 0.0), SIDE + 0.28, 1.0, facecolor=LAYER, edgecolor="none"))
    note(axes, (0.8, 0.48), "a layer", fontsize=11, color=INK)
    entries = (
        (2.7, TOKEN, True, "words or patches"),
        (8.2, INK, True, "learned in this layer"),
        (14.4, INK, False, "learned before, carries on"),
    )
    for x, colour, learned, name in entries:
        token(axes, (x, 0.3), colour, learned)
        note(axes, (x + 0.6, 0.48), name, fontsize=11, color=INK)
    axes.plot([22.1, 22.8], [0.48] * 2, color=INK, lw=2, ls=(0, (2, 1.2)))
    note(axes, (23.0, 0.48), "held to plain CLIP by a loss", fontsize=11, color=INK)
    axes.set_xlim(-0.1, OUT * 3 + 4.6)
    axes.set_ylim(-0.1, 1.1)
    axes.set_aspect("equal")
    axes.set_axis_off()


def main(file: str) -> None:
    """Draw the picture to `file`."""
    figure = plt.figure(figsize=(11.25, 8.2), layout="constrained")
    grid = figure.add_gridspec(4, 3, height_ratios=(1, 1, 1, 0.15))
    for i, row in enumerate(PANELS):
        for j, name in enumerate(row):
            panel(figure.add_subplot(grid[i, j]), METHODS[name])
    draw_legend(figure.add_subplot(grid[3, :]))
    figure.savefig(file, dpi=130, facecolor="white")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
