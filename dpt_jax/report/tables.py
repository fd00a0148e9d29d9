"""Tables as Markdown and LaTeX, and cells that are safe in a CSV file."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd
from tabulate import LATEX_ESCAPE_RULES

from dpt_jax.config import shots_in_words
from dpt_jax.methods import ROWS, ZERO_SHOT
from dpt_jax.report.frame import in_order

# First characters that make a spreadsheet read a cell as a formula, full-width forms included.
FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


class Table(NamedTuple):
    """A table of a report, with its title, and words about its numbers."""

    title: str
    words: str
    cells: pd.DataFrame

    def markdown(self) -> str:
        """Return a heading, the words and the table."""
        return f"### {self.title}\n\n{self.words}\n\n{markdown(self.cells)}"

    def latex(self) -> str:
        """Return a table environment, which needs the package booktabs."""
        words = f"{self.title}: {self.words}"
        caption = "".join(LATEX_ESCAPE_RULES.get(character, character) for character in words)
        rows = self.cells.to_markdown(index=False, tablefmt="latex_booktabs", disable_numparse=True)
        text = f"\\begin{{table}}\n\\centering\n\\caption{{{caption}}}\n{rows}\n\\end{{table}}\n"
        return text.replace("±", "$\\pm$")


def table(
    title: str,
    words: str,
    cells: pd.DataFrame,
    by: str = "shots",
    columns: Sequence[str] = (),
    spread: str = "mean ± standard deviation of",
    more: str = "",
    sign: str = "",
) -> Table:
    """Return a table of methods × shots, or of methods and shots × other columns.

    Args:
        title: Its title.
        words: What the numbers are; the number of seeds is appended.
        cells: method, shots, `by`, accuracy_mean, perhaps spread, and seeds.
        by: What the columns are.
        columns: Their order, unless they are shots.
        spread: Words before the number of seeds.
        more: Sentences that follow.
        sign: "+" to show the sign of positive numbers.
    """
    cells = in_order(cells, ["method", "shots"])
    text = cells.accuracy_mean.map(f"{{:{sign}.1f}}".format)
    if "spread" in cells:
        text += cells.spread.map(" ± {:.1f}".format).where(cells.spread.notna(), "")
    seeds = cells.seeds[cells.method != ZERO_SHOT].astype(int)  # zero-shot CLIP has none
    if len(seeds) and seeds.max() == 1:
        words += ", one seed"
    elif len(seeds):
        words += f", {spread} {' to '.join(map(str, sorted({seeds.min(), seeds.max()})))} seeds"
    if by == "shots":
        columns = [shots_in_words(shots) for shots in in_order(cells, ["shots"]).shots.unique()]
        cells = cells.assign(shots=cells.shots.map(shots_in_words))
    else:
        cells = cells.assign(shots=cells.shots.replace({0: "", -1: "all"}).astype(str))
    shown = cells.assign(text=text).pivot_table(
        "text", ["method"] if by == "shots" else ["method", "shots"], by, "first", sort=False
    )
    shown = shown.reindex(columns=list(columns)).fillna("").reset_index()
    shown["method"] = shown.method.map(lambda method: ROWS[method].label)
    return Table(title, f"{words}.{more}", shown)


def markdown(cells: pd.DataFrame) -> str:
    """Format a Markdown table with aligned columns."""

    def escaped(cell: str) -> str:
        return " ".join(cell.split()).replace("|", "\\|")

    cells = cells.map(escaped).rename(columns=escaped)
    return cells.to_markdown(index=False, tablefmt="github", disable_numparse=True)


def csv_of(frame: pd.DataFrame, float_format: str | None = None) -> bytes:
    """Return a CSV file. Names of folders may have bytes that are not Unicode."""
    text = frame.map(inert).to_csv(index=False, float_format=float_format)
    return text.encode(errors="backslashreplace")


def inert(cell: Any) -> Any:
    """Put an apostrophe before text that a spreadsheet would run as a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULAS) else cell
