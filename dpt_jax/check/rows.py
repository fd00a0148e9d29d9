"""Lines of the table that `dpt-jax check` prints."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dpt_jax.io import short


class Row(NamedTuple):
    """One line.

    Attributes:
      group: its group, such as "numbers".
      name: what was measured.
      figure: its value with a unit.
      bound: the bound of the figure, "" if there is none.
      ok: whether the figure is within the bound, None without one.
    """

    group: str
    name: str
    figure: str
    bound: str = ""
    ok: bool | None = None


def at_most(group: str, name: str, value: float, bound: float) -> Row:
    """Return the row of an error with its bound.  NaN is not ok."""
    return Row(group, name, f"{value:.1e}", f"<= {bound:.0e}", bool(value <= bound))


@contextlib.contextmanager
def failing(rows: list[Row], group: str, name: str) -> Iterator[None]:
    """If the body raises, add a row with the reason, not ok, and continue."""
    try:
        yield
    except Exception as reason:  # of any library
        rows.append(
            Row(group, name, f"{type(reason).__name__}: {short(reason)}", "no error", False)
        )


def table(rows: Sequence[Row]) -> str:
    """Return the lines in columns, with a last line that counts the failures."""
    status = {True: "ok", False: "NOT OK", None: "-"}
    cells = [("", "", "figure", "bound", "")]
    cells += [(row.group, row.name, row.figure, row.bound, status[row.ok]) for row in rows]
    cells = [
        ("" if i and cell[0] == cells[i - 1][0] else cell[0], *cell[1:])
        for i, cell in enumerate(cells)
    ]
    widths = [max(len(cell[i]) for cell in cells) for i in range(5)]
    lines = ["  ".join(map(str.ljust, cell, widths)).rstrip() for cell in cells]
    failed = [row for row in rows if row.ok is False]
    names = "; ".join(f"{row.group}: {row.name}" for row in failed)
    return "\n".join([*lines, "", f"{len(failed)} not ok: {names}" if failed else "all ok"])
