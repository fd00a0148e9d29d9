"""Tables as Markdown and CSV."""

import csv
from collections.abc import Iterable, Sequence
from typing import TextIO

# What a cell begins with that spreadsheets take for a formula, the wide forms of it too.
FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    escaped = [
        [" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in (header, *rows)
    ]
    lines = [f"| {' | '.join(row)} |" for row in escaped]
    return "\n".join([lines[0], "| --- " * len(header) + "|", *lines[1:]])


class CSVWriter:
    """Rows of text and numbers; text that a spreadsheet would take for a formula gets an apostrophe
    in front.
    """

    def __init__(self, out: TextIO, header: Sequence[str]) -> None:
        """out: opened with newline=""."""
        self._writer = csv.writer(out)
        self.write(header)

    def write(self, row: Iterable[object]) -> None:
        """Write one row."""
        self._writer.writerow([_inert(cell) for cell in row])


def _inert(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULAS) else cell
