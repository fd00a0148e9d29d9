"""Accuracies of runs compared with published ones from a CSV file."""

import csv
from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd
from etils import epath

from dpt_jax.config import shots_in_words
from dpt_jax.data.catalogue import CATALOGUE, EMBEDDED, PAPER_DATASETS
from dpt_jax.errors import UserError
from dpt_jax.io import reading
from dpt_jax.methods import ROWS, ZERO_SHOT
from dpt_jax.report.frame import shots_rank
from dpt_jax.report.tables import Table

AVERAGE = "average"  # over the paper's datasets
NEEDED, OPTIONAL = ("method", "dataset", "shots", "accuracy"), ("classes", "source")
HARMONIC = "harmonic mean"
CLASSES = ("all", "base", "new", HARMONIC)
EXPLAINED = (
    "Accuracy (%), the difference in points, and the same in standard errors of our mean over "
    "the seeds."
)
PLACE = ["method", "dataset", "shots", "classes"]  # what identifies a published accuracy
# A mean over seeds and datasets, its standard error, and the number of seeds. The mean is NaN if a
# dataset has not run, and the error with one seed.
Ours = tuple[float, float, str]


def read_published(file: epath.Path, datasets: Collection[str]) -> pd.DataFrame:
    """Read a CSV file of published accuracies.

    Args:
        file: It has the columns NEEDED and perhaps OPTIONAL. Lines that begin with # are comments.
        datasets: Names of datasets that are allowed besides those of the catalogue.

    Returns:
        Columns PLACE, accuracy in percent, and source. Shots are 0 for zero-shot.

    Raises:
        UserError: Naming a wrong row.
    """
    with reading(file, "a CSV file of published accuracies"):
        lines = file.read_text(encoding="utf-8-sig").splitlines()
        lines = [line for line in lines if line.strip(" ,;\t") and not line.startswith("#")]
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines, strict=True)]
    header, *rows = rows or [[]]
    if not {*NEEDED} <= {*header} <= {*NEEDED, *OPTIONAL} or len({*header}) < len(header):
        raise UserError(
            f"{file} begins with {','.join(header)!r}: the header must be {','.join(NEEDED)}, and "
            f"may have {' and '.join(OPTIONAL)}."
        )
    if uneven := [row for row in rows if len(row) != len(header)]:
        raise UserError(f"{file}, row {','.join(uneven[0])}: it must have {len(header)} cells.")
    frame = pd.DataFrame(rows, columns=header, dtype=str)
    frame = frame.reindex(columns=[*NEEDED, *OPTIONAL], fill_value="")
    frame["classes"] = frame.classes.replace("", "all")
    shots = pd.to_numeric(frame.shots.replace("", "0"), errors="coerce")
    accuracy = pd.to_numeric(frame.accuracy, errors="coerce")
    known = {*CATALOGUE, *EMBEDDED, AVERAGE, *datasets}
    for wrong, why in (
        (~frame.method.isin(list(ROWS)), f"the method is not one of {', '.join(ROWS)}"),
        (~frame.dataset.isin(known), f"the dataset is not one of {', '.join(sorted(known))}"),
        (~frame.classes.isin(CLASSES[:3]), f"classes are not one of {', '.join(CLASSES[:3])}"),
        (
            ~((shots >= -1) & (shots % 1 == 0)) | ((shots == 0) != (frame.method == ZERO_SHOT)),
            "shots are images per class, -1 for all, and empty for zero-shot",
        ),
        (~accuracy.between(0, 100), "the accuracy is not a number between 0 and 100"),
        (
            frame.assign(shots=shots).duplicated(PLACE),
            "an earlier row has the same method, dataset, shots and classes",
        ),
    ):
        if wrong.any():
            raise UserError(f"{file}, row {','.join(frame[wrong].iloc[0])}: {why}.")
    if not accuracy.max() > 1:
        raise UserError(f"{file} has no accuracy above 1: give accuracies in percent.")
    return frame.assign(shots=shots.astype(int), accuracy=accuracy)


def harmonic_mean(base: float, new: float) -> float:
    """Return 2·base·new / (base + new), and 0 for two zeros."""
    return 2 * base * new / (base + new) if base + new else 0.0


def with_harmonic_means(published: pd.DataFrame) -> pd.DataFrame:
    """Return PLACE and accuracy, with a row for each harmonic mean of base and new classes."""
    places = published.set_index(PLACE).accuracy
    halves = places.unstack("classes").reindex(columns=["base", "new"]).dropna()
    means = pd.Series([harmonic_mean(*both) for both in halves.values], halves.index)
    means = pd.concat({HARMONIC: means}, names=["classes"]).reorder_levels(PLACE)
    return pd.concat([places, means]).rename("accuracy").reset_index()


def compare(runs: pd.DataFrame, published: pd.DataFrame) -> tuple[list[Table], str]:
    """Return tables of accuracies beside published ones, the average last, and what is missing.

    All classes are in one table. Base and new classes and their harmonic mean are in another.
    """
    frame = with_harmonic_means(published)
    order = [*dict.fromkeys([*CATALOGUE, *runs.dataset, *EMBEDDED]), AVERAGE]
    ranks = {"dataset": order.index, "method": list(ROWS).index, "shots": shots_rank}
    ranks["classes"] = CLASSES.index
    frame["halves"] = frame.classes != "all"
    frame = frame.sort_values(
        ["halves", "dataset", "method", "shots", "classes"],
        key=lambda column: column.map(ranks.get(column.name, int)),
    )
    frame[["ours", "error", "seeds"]] = [_ours(runs, one) for one in frame.itertuples()]
    found = frame.dropna(subset="ours")
    tables, left_out = [], ""
    for (in_halves, dataset), own in found.groupby(["halves", "dataset"], sort=False):
        here = published[published.dataset == dataset]
        sources = here.source[(here.classes != "all") == in_halves].unique()
        title = f"Average over {len(PAPER_DATASETS)} datasets" if dataset == AVERAGE else dataset
        title += f"{', base to new classes' if in_halves else ''}: beside published numbers"
        explained = EXPLAINED
        if any(sources):
            explained += f" Published: {'; '.join(filter(None, sources))}."
        cells = _cells(own)
        tables.append(
            Table(title, explained, cells if in_halves else cells.drop(columns="classes"))
        )
    missing = len(published) - (found.classes != HARMONIC).sum()
    if missing:
        left_out = f"{missing} of {len(published)} published numbers have no run here"
        if AVERAGE in published.dataset.values:
            left_out += f"; an average needs all {len(PAPER_DATASETS)} datasets"
        left_out += "."
    return tables, left_out


def _cells(own: pd.DataFrame) -> pd.DataFrame:
    """Return the text of a table of published accuracies and ours."""
    difference, two_digits = own.ours - own.accuracy, "{:.2f}".format
    errors = difference / own.error.where(own.error > 0)  # seeds may have equal accuracies
    return pd.DataFrame(
        {
            "method": [ROWS[method].label for method in own.method],
            "shots": own.shots.map(lambda shots: shots_in_words(shots) if shots else ""),
            "classes": own.classes,
            "ours": own.ours.map(two_digits),
            "published": own.accuracy.map(two_digits),
            "difference": difference.map("{:+.2f}".format),
            "standard errors": errors.map("{:+.1f}".format).replace("+nan", ""),
            "seeds": own.seeds.mask(own.method == ZERO_SHOT, ""),
        }
    )


def _ours(runs: pd.DataFrame, one: Any) -> Ours:
    """Return our counterpart of a published number.

    A harmonic mean is that of the mean accuracies over the seeds that have both. Its standard error
    is that of base·dH/dbase + new·dH/dnew, with both of the same run.
    """
    if one.classes != HARMONIC:
        return _mean(_by_seed(runs, one, one.classes))
    base, new = _by_seed(runs, one, "base"), _by_seed(runs, one, "new")
    base, new = base.where(new.notna()), new.where(base.notna())
    (b, _, seeds), (n, _, _) = _mean(base), _mean(new)
    moved = 2 * (n / (b + n)) ** 2 * base + 2 * (b / (b + n)) ** 2 * new
    return harmonic_mean(b, n), _mean(moved)[1], seeds


def _by_seed(runs: pd.DataFrame, one: Any, classes: str) -> pd.DataFrame:
    """Return accuracies (seeds, datasets) of one method; NaN for missing runs."""
    own = runs[(runs.method == one.method) & (runs.shots == one.shots) & (runs.classes == classes)]
    if one.method != ZERO_SHOT:
        trained = "all" if classes == "all" else "base"
        own = own[(own.trained_on == own.dataset) & (own.trained_classes == trained)]
    datasets = PAPER_DATASETS if one.dataset == AVERAGE else [one.dataset]
    return own.pivot(index="seed", columns="dataset", values="accuracy").reindex(columns=datasets)


def _mean(by_seed: pd.DataFrame) -> Ours:
    """Average over seeds, then over datasets."""
    counts = by_seed.count()
    if not counts.all():
        return np.nan, np.nan, ""
    variance = (by_seed.var(ddof=1) / counts).sum(skipna=False)
    seeds = " to ".join(dict.fromkeys([str(counts.min()), str(counts.max())]))
    return by_seed.mean().mean(), np.sqrt(variance) / len(counts), seeds
