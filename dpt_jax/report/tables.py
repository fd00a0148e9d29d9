"""Tables as Markdown, and cells that are safe in a CSV file."""

from collections.abc import Iterable, Sequence

from tabulate import tabulate

# First characters that make a spreadsheet read a cell as a formula, full-width forms included.
FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a Markdown table with aligned columns."""
    lines = [
        [" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in (header, *rows)
    ]
    return tabulate(lines[1:], lines[0], tablefmt="github", disable_numparse=True)


def inert(cell: object) -> object:
    """Put an apostrophe before text that a spreadsheet would run as a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULAS) else cell
