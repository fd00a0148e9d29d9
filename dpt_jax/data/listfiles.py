"""Text and MATLAB files that come with a dataset. Callers name the file, see `io.reading`."""

import io
import warnings
from typing import Any

from etils import epath
from scipy.io import loadmat


def text(file: epath.Path) -> str:
    """Return the text of a UTF-8 file, with or without a byte-order mark."""
    return file.read_bytes().decode("utf-8-sig")


def lines(file: epath.Path) -> list[str]:
    """Return the lines of a text file that are not blank, stripped."""
    return [line.strip() for line in text(file).splitlines() if line.strip()]


def fields(file: epath.Path, count: int) -> list[list[str]]:
    """Return each line as `count` fields between spaces. The last has the rest of the line."""
    rows = [line.split(maxsplit=count - 1) for line in lines(file)]
    for row in rows:
        if len(row) != count:
            raise ValueError(f"{' '.join(row)!r} should have {count} fields")
    return rows


def matlab_row(file: epath.Path, variable: str) -> list[Any]:
    """Return the cells of the first row of a variable of a MATLAB file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of duplicate names in a damaged file
        return list(loadmat(io.BytesIO(file.read_bytes()))[variable][0])
