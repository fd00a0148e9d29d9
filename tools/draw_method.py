"""Draws the picture of the method, docs/method.png.

python tools/draw_method.py docs/method.png
"""

import sys
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

# Okabe and Ito's colours, which colour-blind readers can tell apart; the outlines differ too.
FROZEN, TEXT, VISUAL, CLASS_AWARE = "#E4E7EB", "#E69F00", "#56B4E9", "#009E73"
INK, SOFT = "#1B1F24", "#5A6472"
Point = tuple[float, float]


def box(
    axes: Any, place: Point, size: Point, text: str, colour: str = FROZEN, learned: bool = False
) -> None:
    """Draw a box with its lower left corner at `place`; a learned one has a thick outline."""
    outline, width = (INK, 2.0) if learned else (SOFT, 0.9)
    axes.add_patch(
        FancyBboxPatch(
            place,
            width=size[0],
            height=size[1],
            boxstyle="round,pad=0,rounding_size=0.12",
            facecolor=colour,
            edgecolor=outline,
            linewidth=width,
        )
    )
    middle = (place[0] + size[0] / 2, place[1] + size[1] / 2)
    axes.text(*middle, text, ha="center", va="center", fontsize=10.5, color=INK)


def tokens(axes: Any, place: Point, colours: list[str]) -> None:
    """Draw a row of tokens; those that are not frozen are learned."""
    for i, colour in enumerate(colours):
        box(axes, (place[0] + 0.36 * i, place[1]), (0.3, 0.42), "", colour, colour != FROZEN)


def arrow(axes: Any, start: Point, end: Point, bend: float = 0.0, dashed: bool = False) -> None:
    """Draw an arrow; a dashed one carries no gradient."""
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=13,
            linewidth=1.4,
            color=INK,
            linestyle=(0, (4, 3)) if dashed else "-",
            connectionstyle=f"arc3,rad={bend}",
            shrinkA=0,
            shrinkB=0,
        )
    )


def note(axes: Any, place: Point, text: str, **options: Any) -> None:
    """Write a line beside the boxes."""
    axes.text(*place, text, **{"fontsize": 9.5, "color": SOFT, "va": "center", **options})


def draw_text_side(axes: Any) -> None:
    """Draw the upper row: context and class names through the text tower."""
    note(axes, (0.1, 6.55), "class texts", fontsize=10.5, color=INK)
    tokens(axes, (0.1, 5.85), [TEXT] * 4 + [FROZEN] * 3)
    note(axes, (0.1, 5.5), "context v₁…vₙ")
    note(axes, (1.62, 5.5), "class name")
    arrow(axes, (2.75, 6.05), (3.35, 6.05))
    box(axes, (3.35, 5.55), (4.6, 1.0), "text tower of CLIP, frozen")
    arrow(axes, (7.95, 6.05), (9.05, 6.05))
    box(axes, (9.05, 5.75), (2.0, 0.6), "class features t", "#FFFFFF")


def draw_image_side(axes: Any) -> None:
    """Draw the lower row: patches through the image tower, with prompts at each layer."""
    note(axes, (0.1, 2.0), "image", fontsize=10.5, color=INK)
    tokens(axes, (0.1, 1.3), [FROZEN] * 7)
    note(axes, (0.1, 0.95), "class token and patches")
    arrow(axes, (2.75, 1.5), (3.35, 1.5))
    for x, name in ((3.35, "layer 1"), (4.95, "…"), (6.55, "last layer")):
        box(axes, (x, 1.0), (1.4, 1.0), name)
    arrow(axes, (4.75, 1.5), (4.95, 1.5))
    arrow(axes, (6.35, 1.5), (6.55, 1.5))
    note(axes, (4.85, 0.72), "image tower of CLIP, frozen", fontsize=10.5, color=INK, ha="center",
         va="top")  # fmt: skip
    for x, name in ((3.35, "P₁"), (4.95, "Pₗ")):
        box(axes, (x + 0.3, 2.45), (0.8, 0.42), name, VISUAL, learned=True)
        arrow(axes, (x + 0.7, 2.45), (x + 0.7, 2.02))
    note(axes, (3.5, 2.66), "visual prompts", ha="right")
    arrow(axes, (7.95, 1.5), (9.05, 1.5))
    box(axes, (9.05, 1.2), (2.0, 0.6), "image feature f̂", "#FFFFFF")


def draw_class_aware(axes: Any) -> None:
    """Draw the middle: class-aware prompts, made of class features and image tokens."""
    box(axes, (6.35, 3.35), (1.8, 0.85), "CAVPT\ncross-attention", CLASS_AWARE, learned=True)
    arrow(axes, (7.25, 3.35), (7.25, 2.02))
    note(axes, (7.38, 2.65), "K class prompts")
    # The queries come from the text side, keys and values from the tokens before the layer.
    arrow(axes, (9.5, 5.75), (8.15, 3.95), bend=-0.2)
    note(axes, (8.95, 4.35), "query: t of the K classes\nthat plain CLIP finds likeliest")
    arrow(axes, (6.45, 2.02), (6.45, 3.35), dashed=True)
    note(axes, (6.3, 3.05), "keys, values:\nimage tokens", ha="right", va="bottom")


def draw_losses(axes: Any) -> None:
    """Draw the right: logits and losses."""
    arrow(axes, (11.05, 6.05), (11.75, 4.15), bend=-0.15)
    arrow(axes, (11.05, 1.5), (11.75, 3.4), bend=0.15)
    box(axes, (11.75, 3.35), (2.15, 0.85), "logits  s f̂ t̂ᵀ", "#FFFFFF")
    note(axes, (11.9, 2.95), "loss: cross-entropy of", va="top", color=INK)
    losses = (
        "· the logits",
        "· text and image alone, each",
        "   against plain CLIP (early)",
        "· CAVPT's own logits (weight α)",
    )
    for i, line in enumerate(losses):
        note(axes, (11.9, 2.55 - 0.3 * i), line, color=INK)


def draw_legend(axes: Any) -> None:
    """Draw the legend: frozen or learned, and the arrow without gradient."""
    entries = ((FROZEN, "frozen"), (TEXT, "learned: text"), (VISUAL, "learned: visual"),
               (CLASS_AWARE, "learned: class-aware"))  # fmt: skip
    x = 0.1
    for colour, name in entries:
        box(axes, (x, -0.35), (0.42, 0.34), "", colour, colour != FROZEN)
        note(axes, (x + 0.55, -0.18), name, fontsize=10.5, color=INK)
        x += 1.45 + 0.125 * len(name)
    arrow(axes, (x, -0.18), (x + 0.6, -0.18), dashed=True)
    note(axes, (x + 0.7, -0.18), "no gradient", fontsize=10.5, color=INK)


def main(file: str) -> None:
    """Draw the picture to `file`."""
    figure, axes = plt.subplots(figsize=(11.25, 6.0), layout="constrained")
    axes.set_xlim(-0.1, 14.4)
    axes.set_ylim(-0.55, 6.9)
    axes.set_axis_off()
    for draw in (draw_text_side, draw_image_side, draw_class_aware, draw_losses, draw_legend):
        draw(axes)
    figure.savefig(file, dpi=130, facecolor="white")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
