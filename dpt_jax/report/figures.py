"""What all figures share: matplotlib without a screen, and texts as they can be drawn."""

from typing import Any

MOST_LETTERS = 30  # of a class's name


def pyplot() -> Any:
    """Return matplotlib.pyplot, which draws to files alone."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot

    matplotlib.rcParams["text.parse_math"] = False  # names are no formulas, whatever is in them

    return matplotlib.pyplot


def printable(text: str) -> str:
    """Return the text as it can be drawn: on one line, other bytes than Unicode written out."""
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())


def shortened(text: str, most: int) -> str:
    text = printable(text)
    return text if len(text) <= most else f"{text[: most - 1]}…"
