"""Published accuracies, as a CSV file has them that stands beside a report."""

import csv
import io
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from etils import epath

from dpt_jax.data.catalogue import CATALOGUE, EMBEDDED, PAPER_DATASETS
from dpt_jax.errors import UserError
from dpt_jax.methods import ROWS, ZERO_SHOT

AVERAGE = "average"  # over the paper's datasets
NEEDED, OPTIONAL = ("method", "dataset", "shots", "accuracy"), ("classes", "source")
CLASSES = ("all", "base", "new")


class Place(NamedTuple):
    """What a published accuracy is of. dataset may be AVERAGE; shots are 0 for zero-shot."""

    method: str
    dataset: str
    shots: int
    classes: str


class Published(NamedTuple):
    """An accuracy in percent, and in words where it was published."""

    accuracy: float
    source: str


def read_published(file: epath.Path, datasets: Collection[str]) -> dict[Place, Published]:
    """Return the published accuracies of a CSV file.

    datasets: names that it may have besides those of the catalogue. Lines that begin with # are
    left out. Raise UserError with the line where something is not as it should be.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as reason:
        raise UserError(f"--beside={file}: it cannot be read ({reason}).") from reason
    except UnicodeDecodeError as reason:
        raise UserError(f"--beside={file}: it is no text in UTF-8; save it as CSV.") from reason
    known = {*CATALOGUE, *EMBEDDED, AVERAGE, *datasets}
    found: dict[Place, Published] = {}
    lines: dict[Place, int] = {}
    for line, row in _rows(file, text):
        try:
            place = _place(row, known)
            accuracy = _percent(row["accuracy"])
            if place in found:
                raise ValueError(f"line {lines[place]} has the same method, dataset and shots")
        except ValueError as reason:
            raise UserError(f"{file}, line {line}: {reason}.") from reason
        found[place], lines[place] = Published(accuracy, row.get("source", "")), line
    if not found:
        raise UserError(f"{file} has no accuracy below its header.")
    if max(one.accuracy for one in found.values()) <= 1:
        raise UserError(f"{file}: no accuracy is above 1; give them in percent, such as 65.2.")
    return found


def _rows(file: epath.Path, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the number of each line, from 1, and its fields by column."""
    header: Sequence[str] = ()
    for line, content in enumerate(text.splitlines(), 1):
        if not content.strip(" ,;\t") or content.startswith("#"):
            continue
        fields = [field.strip() for field in next(csv.reader(io.StringIO(content)))]
        if not header:
            header = _checked_header(file, line, fields)
        elif len(fields) != len(header):
            raise UserError(
                f"{file}, line {line}: it has {len(fields)} fields, and the header has "
                f"{len(header)}."
            )
        else:
            yield line, dict(zip(header, fields, strict=True))


def _checked_header(file: epath.Path, line: int, fields: list[str]) -> list[str]:
    missing = [name for name in NEEDED if name not in fields]
    unknown = [name for name in fields if name not in (*NEEDED, *OPTIONAL)]
    twice = [name for name in fields if fields.count(name) > 1]
    what = (
        f"column {missing[0]!r} is missing" if missing
        else f"column {unknown[0]!r} is unknown" if unknown
        else f"column {twice[0]!r} is there twice" if twice
        else ""
    )  # fmt: skip
    if what:
        raise UserError(
            f"{file}, line {line}: {what}; the header is {','.join(NEEDED)}, and may have "
            f"{' and '.join(OPTIONAL)}."
        )
    return fields


def _place(row: dict[str, str], known: Collection[str]) -> Place:
    """Return what a row is of.  Raise ValueError, in words, where it is of nothing."""
    method, dataset, shots = row["method"], row["dataset"], row["shots"]
    classes = row.get("classes") or CLASSES[0]
    if method not in ROWS:
        raise ValueError(f"method {method!r} is not one of {', '.join(ROWS)}")
    if dataset not in known:
        raise ValueError(
            f"dataset {dataset!r} is none of a run here, nor one of {', '.join(PAPER_DATASETS)}, "
            f"{AVERAGE}"
        )
    if classes not in CLASSES:
        raise ValueError(f"classes {classes!r} are not {', '.join(CLASSES[:-1])} or {CLASSES[-1]}")
    if method == ZERO_SHOT:
        if shots not in ("", "0"):
            raise ValueError(f"shots {shots!r} of {ZERO_SHOT}, which has none: leave them empty")
        return Place(method, dataset, 0, classes)
    try:
        number = int(shots)
    except ValueError:
        number = 0
    if number < 1 and number != -1:
        raise ValueError(f"shots {shots!r} are no number from 1, nor -1 for all images")
    return Place(method, dataset, number, classes)


def _percent(text: str) -> float:
    """Return an accuracy.  Raise ValueError, in words, where it is none."""
    try:
        accuracy = float(text)
    except ValueError:
        accuracy = -1.0
    if not 0 <= accuracy <= 100:
        raise ValueError(f"accuracy {text!r} is no number from 0 to 100")
    return accuracy
