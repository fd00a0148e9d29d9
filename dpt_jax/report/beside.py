"""Our accuracies beside published ones, with differences in standard errors of our mean."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dpt_jax.data.catalogue import PAPER_DATASETS
from dpt_jax.methods import ROWS, ZERO_SHOT
from dpt_jax.report.cells import Cell, Score, Scores, dataset_rank, harmonic_mean, in_order, rank
from dpt_jax.report.papers import AVERAGE, CLASSES, Place, Published
from dpt_jax.report.tables import markdown
from dpt_jax.settings import shots_in_words

HARMONIC = "harmonic mean"
COMPARED = ("ours", "published", "difference", "standard errors")
EXPLAINED = (
    "Accuracy (%), the difference in points, and the same in standard errors of our mean over "
    "the seeds."
)


class Ours(NamedTuple):
    """A mean over seeds, and datasets, in percent; its standard error, None where not known."""

    mean: float
    error: float | None


def beside_tables(scores: Scores, published: Mapping[Place, Published]) -> list[str]:
    """Return tables of our accuracies beside published ones, one a dataset, the average last.

    All classes stand in one table, and base, new and their harmonic mean in another. Numbers that
    no run has are left out, and counted below.
    """
    tables, shown = [], 0
    for halves in (False, True):
        own = [place for place in published if (place.classes != CLASSES[0]) == halves]
        for dataset in _datasets(own):
            places = sorted((p for p in own if p.dataset == dataset), key=_order)
            if rows := (_rows_of_halves if halves else _rows)(scores, published, places):
                header = ["method", "shots", *(["classes"] if halves else []), *COMPARED]
                tables.append(_title(dataset, halves, published, places) + markdown(header, rows))
        shown += sum(ours_at(scores, place) is not None for place in own)
    left_out = f"{len(published) - shown} of {len(published)} published numbers have no run here"
    if AVERAGE in {place.dataset for place in published}:
        left_out += f"; an average has one where all {len(PAPER_DATASETS)} datasets have run"
    return tables if shown == len(published) else [*tables, f"{left_out}."]


def ours_at(scores: Scores, place: Place) -> Ours | None:
    """Return our accuracy where a published one is of, None where that has not run."""
    found = _scores_at(scores, place)
    if found is None:
        return None
    accuracies = [score.accuracy for score in found]
    return Ours(_mean(accuracies), standard_error(accuracies))


def our_harmonic_mean(scores: Scores, base: Place, new: Place) -> Ours | None:
    """Return the harmonic mean of our mean accuracies, None where one of them has not run.

    Its standard error is that of b dH/db + n dH/dn, with b and n of the same run.
    """
    ours_base, ours_new = _scores_at(scores, base), _scores_at(scores, new)
    if ours_base is None or ours_new is None:
        return None
    b, n = (_mean([one.accuracy for one in found]) for found in (ours_base, ours_new))
    error = None
    pairs = list(zip(ours_base, ours_new, strict=True))
    if b + n and all(one.seeds == other.seeds for one, other in pairs):
        by_base, by_new = 2 * (n / (b + n)) ** 2, 2 * (b / (b + n)) ** 2
        error = standard_error(
            [by_base * one.accuracy + by_new * other.accuracy for one, other in pairs]
        )
    return Ours(harmonic_mean(b, n), error)


def standard_error(accuracies: Sequence[np.ndarray]) -> float | None:
    """Return the standard error of the mean over datasets of the means over seeds.

    accuracies: one array (seeds,) a dataset. None where a dataset has one seed.
    """
    if any(len(seeds) < 2 for seeds in accuracies):
        return None
    variances = [seeds.var(ddof=1) / len(seeds) for seeds in accuracies]
    return float(np.sqrt(sum(variances)) / len(accuracies))


def _mean(accuracies: Sequence[np.ndarray]) -> float:
    return float(np.mean([seeds.mean() for seeds in accuracies]))


def _scores_at(scores: Scores, place: Place) -> list[Score] | None:
    """Return our score on each dataset that a place is of, None where one has not run."""
    trained_classes = "all" if place.classes == "all" else "base"
    found = []
    for dataset in PAPER_DATASETS if place.dataset == AVERAGE else (place.dataset,):
        trained = ("", "") if place.method == ZERO_SHOT else (dataset, trained_classes)
        found.append(scores.get(Cell(place.method, *trained, place.shots, dataset, place.classes)))
    return None if None in found else [score for score in found if score]


def _rows(
    scores: Scores, published: Mapping[Place, Published], places: Iterable[Place]
) -> list[list[str]]:
    """Return rows of all classes."""
    return [
        [*_run(place), *_compared(ours, published[place].accuracy)]
        for place in places
        if (ours := ours_at(scores, place))
    ]


def _rows_of_halves(
    scores: Scores, published: Mapping[Place, Published], places: Iterable[Place]
) -> list[list[str]]:
    """Return rows of base and new classes, each pair with its harmonic mean behind."""
    rows = []
    for place in places:
        if ours := ours_at(scores, place):
            compared = _compared(ours, published[place].accuracy)
            rows.append([*_run(place), place.classes, *compared])
        base = place._replace(classes="base")
        if place.classes == "new" and base in published:
            theirs = harmonic_mean(published[base].accuracy, published[place].accuracy)
            if ours := our_harmonic_mean(scores, base, place):
                rows.append([*_run(place), HARMONIC, *_compared(ours, theirs)])
    return rows


def _compared(ours: Ours, published: float) -> list[str]:
    difference = ours.mean - published
    errors = f"{difference / ours.error:+.1f}" if ours.error else ""
    return [f"{ours.mean:.2f}", f"{published:.2f}", f"{difference:+.2f}", errors]


def _datasets(places: Iterable[Place]) -> list[str]:
    """Return the datasets in the paper's order, the average last."""
    names = in_order(place.dataset for place in places)
    return sorted(names, key=lambda name: (name == AVERAGE, dataset_rank(name)))


def _run(place: Place) -> list[str]:
    return [ROWS[place.method].label, shots_in_words(place.shots) if place.shots else ""]


def _order(place: Place) -> tuple[int, bool, int, int]:
    """Return what sorts the rows of a table: method, shots with all images last, classes."""
    return rank(place.method), place.shots < 0, place.shots, CLASSES.index(place.classes)


def _title(
    dataset: str, halves: bool, published: Mapping[Place, Published], places: Iterable[Place]
) -> str:
    name = (f"Average over {len(PAPER_DATASETS)} datasets" if dataset == AVERAGE else dataset) + (
        ", base to new classes" if halves else ""
    )
    sources = [source for place in places if (source := published[place].source)]
    named = f" Published: {'; '.join(in_order(sources))}." if sources else ""
    return f"### {name}: beside published numbers\n\n{EXPLAINED}{named}\n\n"
