"""Accuracies of runs compared with published ones from a CSV file."""

import csv

import pandas as pd
from etils import epath

from dpt_jax.config import shots_in_words
from dpt_jax.data.catalogue import PAPER_DATASETS
from dpt_jax.errors import UserError
from dpt_jax.io import reading
from dpt_jax.methods import ROWS, ZERO_SHOT
from dpt_jax.report.frame import (
    HARMONIC,
    average,
    in_order,
    summarise,
    trained_there,
    with_harmonic_means,
)
from dpt_jax.report.tables import Table

AVERAGE = "average"  # over the paper's datasets
PLACE = ["method", "dataset", "shots", "classes"]  # what identifies an accuracy in the file
COLUMNS = [*PLACE, "accuracy", "source"]
# The same here: `place` is a dataset or AVERAGE, whose cells have several datasets.
KEYS = ["method", "shots", "place", "classes"]
EXPLAINED = (
    "Accuracy (%), the difference in points, and the same in standard errors of our mean over "
    "the seeds."
)


def read_published(file: epath.Path) -> pd.DataFrame:
    """Read a CSV file of published accuracies.

    Returns:
        COLUMNS, with accuracy in percent. Shots are 0 for zero-shot.

    Raises:
        UserError: It lacks a column, or a cell is not a number or not in percent.
    """
    with reading(file, f"a CSV file with the columns {', '.join(COLUMNS)}"):
        lines = file.read_text(encoding="utf-8-sig").splitlines()
        lines = [line for line in lines if line.strip(" ,;\t") and not line.startswith("#")]
        header, *rows = ([cell.strip() for cell in row] for row in csv.reader(lines, strict=True))
        for row in rows:
            if len(row) != len(header):
                raise ValueError(f"row {','.join(row)} does not have {len(header)} cells")
        frame = pd.DataFrame(rows, columns=header)
        frame = pd.DataFrame({"classes": "", "source": "", **frame})[COLUMNS]
        frame = frame.replace({"classes": {"": "all"}, "shots": {"": "0"}})
        frame = frame.astype({"shots": int, "accuracy": float})
    for wrong, why in (
        (~frame.accuracy.between(1, 100), "the accuracy is not in percent"),
        (frame.duplicated(PLACE), "an earlier row has the same method, dataset, shots and classes"),
    ):
        if wrong.any():
            raise UserError(f"{file}, row {_row(frame[wrong])}: {why}.")
    return frame


def _row(frame: pd.DataFrame) -> str:
    """Return the first row as in the file."""
    return ",".join(map(str, frame.iloc[0][[*PLACE, "accuracy"]]))


def compare(runs: pd.DataFrame, published: pd.DataFrame) -> tuple[list[Table], str]:
    """Return tables of accuracies beside published ones, the average last, and what is missing.

    All classes are in one table. Base and new classes and their harmonic mean are in another.
    """
    published = published.assign(place=published.dataset, seed=0)
    theirs = with_harmonic_means(published, ["method", "shots", "place"])
    both = theirs.merge(_counterparts(runs), "left", on=KEYS)
    missing = both[both.accuracy_mean.isna() & (both.classes != HARMONIC)]
    both = both.dropna(subset="accuracy_mean")
    both["halves"], both["last"] = both.classes != "all", both.place == AVERAGE
    both = in_order(both, ["halves", "last", "dataset", "method", "shots", "classes"])
    tables = []
    for (in_halves, place), own in both.groupby(["halves", "place"], sort=False):
        title = f"Average over {len(PAPER_DATASETS)} datasets" if place == AVERAGE else place
        title += f"{', base to new classes' if in_halves else ''}: beside published numbers"
        sources = "; ".join(source for source in own.source.unique() if source)
        explained = f"{EXPLAINED} Published: {sources}." if sources else EXPLAINED
        cells = _cells(own)
        tables.append(
            Table(title, explained, cells if in_halves else cells.drop(columns="classes"))
        )
    left_out = ""
    if len(missing):
        left_out = f"{len(missing)} of {len(published)} published numbers have no run here, such "
        left_out += f"as {_row(missing)}"
        if AVERAGE in published.place.values:
            left_out += f"; an average needs all {len(PAPER_DATASETS)} datasets"
        left_out += "."
    return tables, left_out


def _counterparts(runs: pd.DataFrame) -> pd.DataFrame:
    """Return mean, error and seeds by KEYS: of each dataset, and of the paper's together."""
    runs = trained_there(runs)
    papers = runs[runs.dataset.isin(PAPER_DATASETS)]
    runs = pd.concat([runs.assign(place=runs.dataset), papers.assign(place=AVERAGE)])
    runs = with_harmonic_means(runs, ["method", "shots", "place"])
    cells = summarise(runs, [*KEYS, "dataset"])
    whole = cells.place == AVERAGE
    averages = average(cells[whole], KEYS, len(PAPER_DATASETS))
    return pd.concat([average(cells[~whole], KEYS, 1), averages])


def _cells(own: pd.DataFrame) -> pd.DataFrame:
    """Return the text of a table of published accuracies and ours."""
    difference, two_digits = own.accuracy_mean - own.accuracy, "{:.2f}".format
    errors = difference / own.error.where(own.error > 0)  # seeds may have equal accuracies
    return pd.DataFrame(
        {
            "method": [ROWS[method].label for method in own.method],
            "shots": own.shots.map(lambda shots: shots_in_words(shots) if shots else ""),
            "classes": own.classes,
            "ours": own.accuracy_mean.map(two_digits),
            "published": own.accuracy.map(two_digits),
            "difference": difference.map("{:+.2f}".format),
            "standard errors": errors.map("{:+.1f}".format).replace("+nan", ""),
            "seeds": own.seeds.astype(int).astype(str).mask(own.method == ZERO_SHOT, ""),
        }
    )
