"""Tables as Markdown and LaTeX, and cells that are safe in a CSV file."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tabulate import LATEX_ESCAPE_RULES, tabulate

# First characters that make a spreadsheet read a cell as a formula, full-width forms included.
FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


class Table(NamedTuple):
    """A table of a report, with its title, and words about its numbers."""

    title: str
    words: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Return a heading, the words and the table."""
        return f"### {self.title}\n\n{self.words}\n\n{markdown(self.header, self.rows)}"

    def latex(self) -> str:
        """Return a table environment, which needs the package booktabs."""
        words = f"{self.title}: {self.words}"
        caption = "".join(LATEX_ESCAPE_RULES.get(character, character) for character in words)
        lines = tabulate(self.rows, self.header, tablefmt="latex_booktabs", disable_numparse=True)
        text = f"\\begin{{table}}\n\\centering\n\\caption{{{caption}}}\n{lines}\n\\end{{table}}\n"
        return text.replace("±", "$\\pm$")


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a Markdown table with aligned columns."""
    lines = [
        [" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in (header, *rows)
    ]
    return tabulate(lines[1:], lines[0], tablefmt="github", disable_numparse=True)


def inert(cell: object) -> object:
    """Put an apostrophe before text that a spreadsheet would run as a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULAS) else cell
