"""What all figures share: matplotlib without a screen, and texts as they can be drawn."""

import pathlib
from typing import Any, BinaryIO, cast

from etils import epath

MOST_LETTERS = 30  # of a class's name


def pyplot() -> Any:
    """Return matplotlib.pyplot, which draws to files alone."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot

    matplotlib.rcParams["text.parse_math"] = False  # names are no formulas, whatever is in them

    return matplotlib.pyplot


def save(figure: Any, file: epath.Path | BinaryIO, dpi: int) -> None:
    """Write a figure as a PNG, to a file in a bucket too, and close it."""
    if isinstance(file, pathlib.PurePath):
        with cast(epath.Path, file).open("wb") as out:
            figure.savefig(out, dpi=dpi, format="png")
    else:
        figure.savefig(file, dpi=dpi, format="png")
    pyplot().close(figure)


def printable(text: str) -> str:
    """Return the text as it can be drawn: on one line, other bytes than Unicode written out."""
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())


def shortened(text: str, most: int) -> str:
    text = printable(text)
    return text if len(text) <= most else f"{text[: most - 1]}…"
