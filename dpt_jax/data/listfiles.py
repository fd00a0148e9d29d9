"""Text, JSON and MATLAB files that come with a dataset: what they should hold, or one sentence."""

import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

from etils import epath

from dpt_jax.errors import UserError

LAYOUT = (
    "see CoOp's DATASETS.md (github.com/KaiyangZhou/CoOp) for where to get it and how to lay it out"
)
# What a server, or Git without its large files, gives in the place of a file.
STAND_INS = {
    "<!doctype html": "an HTML page",
    "<html": "an HTML page",
    "version https://git-lfs": "a pointer of Git LFS",
}

# Takes a file from its input, and gives the first row of a variable to its output.
MATLAB_READER = """
import io, pickle, sys, warnings
from scipy.io import loadmat
warnings.simplefilter("ignore")
row = loadmat(io.BytesIO(sys.stdin.buffer.read()))[sys.argv[1]][0]
sys.stdout.buffer.write(pickle.dumps(list(row)))
"""
T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


def read_bytes(file: epath.Path) -> bytes:
    """Return the content of a file. Raise UserError where it is not there or cannot be read."""
    if not file.is_file():
        raise UserError(f"{file} is not there; {LAYOUT}.")
    try:
        return file.read_bytes()
    except OSError as reason:
        raise UserError(f"{file} cannot be read ({reason}).") from reason


def read_text(file: epath.Path, errors: str = "strict") -> str:
    """Return the text of a UTF-8 file, with or without a byte-order mark.

    errors: what is done about other bytes, as in bytes.decode.
    Raise UserError where it is not there, is in another encoding or is a page
    or a pointer in the place of the file.
    """
    try:
        text = read_bytes(file).decode("utf-8-sig", errors)
    except UnicodeDecodeError as reason:
        raise UserError(
            f"{file} is not text in UTF-8 (byte {reason.start}): download it again, or save it as "
            "UTF-8."
        ) from reason
    start = text[:100].lstrip().lower()
    for beginning, what in STAND_INS.items():
        if start.startswith(beginning):
            raise UserError(f"{file} is {what}, not the file itself: download it again.")
    if "\0" in text:
        raise UserError(f"{file} is not a text file: download it again.")
    return text


def read_lines(file: epath.Path) -> list[str]:
    """Return the lines of a text file that are not blank, without the spaces around them."""
    return [line.strip() for line in read_text(file).splitlines() if line.strip()]


def read_fields(file: epath.Path, count: int) -> list[list[str]]:
    """Return lines as `count` fields between spaces; the last takes the rest of the line."""
    rows = [line.split(maxsplit=count - 1) for line in read_lines(file)]
    for number, row in enumerate(rows, 1):
        if len(row) != count:
            raise UserError(
                f"{file}, line {number}: {' '.join(row)!r} should have {count} fields; "
                "download it again."
            )
    return rows


def read_json(file: epath.Path) -> Any:
    """Return what a JSON file holds. Raise UserError where it is none."""
    return parse_json(read_text(file), str(file))


def parse_json(text: str, name: str) -> Any:
    """Return what JSON text holds. Raise UserError that says what `name` is not."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as reason:
        raise UserError(f"{name} is not valid JSON ({reason}); download it again.") from reason


def read_matlab(file: epath.Path, variable: str, convert: Callable[[Any], T]) -> list[T]:
    """Return convert(cell) for each cell of a variable of a MATLAB file.

    Raise UserError where the file, the variable or a cell is not as it should
    be; `convert` may raise whatever it does on such a cell.
    """

    def refused(reason: str) -> UserError:
        return UserError(
            f"{file} is not a MATLAB file with {variable!r} as the dataset has it ({reason}); "
            "download it again."
        )

    # In a process of its own, since a damaged file can crash SciPy's reader.
    reader = [sys.executable, "-P", "-c", MATLAB_READER, variable]
    done = subprocess.run(reader, input=read_bytes(file), capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="backslashreplace").strip().splitlines()
        crashed = f"its reader ended with {done.returncode}"
        raise refused(said[-1] if said and done.returncode > 0 else crashed)
    try:
        return [convert(cell) for cell in pickle.loads(done.stdout)]
    except Exception as reason:  # `convert` on a cell of another kind
        raise refused(f"{type(reason).__name__}: {reason}") from reason


def whole_number(text: str, file: epath.Path) -> int:
    """Return the number that a field of `file` is. Raise UserError where it is none."""
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise UserError(f"{file} has {text!r} where a number should be; download it again.")
    return int(text)


def look_up(label: K, table: Mapping[K, T], file: epath.Path) -> T:
    """Return table[label], where `file` is what names the label."""
    if label not in table:
        raise UserError(
            f"{file} names the class {label!r}, which the list of classes does not have."
        )
    return table[label]
