"""Tables as Markdown and LaTeX, and cells that are safe in a CSV file."""

from typing import NamedTuple

import pandas as pd
from tabulate import LATEX_ESCAPE_RULES, tabulate

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
        lines = _formatted(self.cells, "latex_booktabs")
        text = f"\\begin{{table}}\n\\centering\n\\caption{{{caption}}}\n{lines}\n\\end{{table}}\n"
        return text.replace("±", "$\\pm$")


def markdown(cells: pd.DataFrame) -> str:
    """Format a Markdown table with aligned columns."""

    def escaped(cell: str) -> str:
        return " ".join(cell.split()).replace("|", "\\|")

    return _formatted(cells.map(escaped).rename(columns=escaped), "github")


def csv_of(frame: pd.DataFrame, float_format: str | None = None) -> bytes:
    """Return a CSV file. Names of folders may have bytes that are not Unicode."""
    text = frame.map(inert).to_csv(index=False, float_format=float_format)
    return text.encode(errors="backslashreplace")


def inert(cell: object) -> object:
    """Put an apostrophe before text that a spreadsheet would run as a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULAS) else cell


def _formatted(cells: pd.DataFrame, style: str) -> str:
    rows = cells.to_numpy().tolist()
    return tabulate(rows, list(cells.columns), tablefmt=style, disable_numparse=True)
