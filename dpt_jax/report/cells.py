"""The results of many runs by table cell: runs that differ in their seed only."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from dpt_jax.data.catalogue import PAPER_DATASETS
from dpt_jax.evaluation.results import Results
from dpt_jax.methods import ROWS, ZERO_SHOT

UNKNOWN = "unknown"


class Cell(NamedTuple):
    """Runs that differ in their seed only. trained_on and trained_classes are "" for zero-shot, and
    UNKNOWN where
    a checkpoint does not say it."""

    method: str
    trained_on: str
    trained_classes: str
    shots: int
    dataset: str
    classes: str


class Score(NamedTuple):
    """Accuracy and macro F1 of a cell in percent: one number a seed; and the test images of a
    run.

    seeds: in the order of the numbers; of zero-shot, which has none, (0,).
    """

    accuracy: np.ndarray
    macro_f1: np.ndarray
    images: int
    seeds: tuple[int, ...]

    def __str__(self) -> str:
        """Return the mean, and of several seeds their standard deviation.

        It is that of the population, as in published tables.
        """
        deviation = f" ± {self.accuracy.std():.1f}" if len(self.accuracy) > 1 else ""
        return f"{self.accuracy.mean():.1f}{deviation}"


Scores = Mapping[Cell, Score]


T = TypeVar("T")


def cell_of(one: Results) -> Cell:
    """Return the cell that the results of a run belong to."""
    nothing = "" if one["method"] == ZERO_SHOT else UNKNOWN
    trained = one["trained_on"] or {"dataset": nothing, "classes": nothing}
    return Cell(
        one["method"],
        trained["dataset"],
        trained["classes"],
        0 if one["method"] == ZERO_SHOT else one["shots"],
        one["dataset"],
        one["classes"],
    )


def scores_of(results: Iterable[Results]) -> dict[Cell, Score]:
    """Return the scores of each cell, datasets in the paper's order.

    A seed counts once, however often it was evaluated.
    """
    by_cell: dict[Cell, dict[int, Results]] = {}
    for one in results:
        # Zero-shot has no sample and no seed.
        seed = 0 if one["method"] == ZERO_SHOT else one["seed"]
        by_cell.setdefault(cell_of(one), {})[seed] = one
    scores = {}
    for cell, runs in sorted(by_cell.items(), key=lambda item: dataset_rank(item[0].dataset)):
        seeds = tuple(sorted(runs))
        ordered = [runs[seed] for seed in seeds]
        accuracy, macro_f1 = (
            100 * np.array([run[key] for run in ordered]) for key in ("accuracy", "macro_f1")
        )
        scores[cell] = Score(accuracy, macro_f1, ordered[0]["n"], seeds)
    return scores


def in_domain(scores: Scores) -> dict[Cell, Score]:
    """Return the cells tested on all classes of what they were trained on, and zero-shot."""
    return {
        cell: score
        for cell, score in scores.items()
        if cell.classes == "all"
        and (cell.trained_on, cell.trained_classes) in (("", ""), (cell.dataset, "all"))
    }


def average_over_datasets(cells: Scores, datasets: Sequence[str]) -> dict[tuple[str, int], float]:
    """Return mean accuracies by (method, shots).

    A mean is there where the method has run with these shots on every one of the datasets.
    """
    means: dict[tuple[str, int], dict[str, float]] = {}
    shots = {cell.shots for cell in cells if cell.trained_on} or {0}
    for cell, score in cells.items():
        for s in shots if cell.method == ZERO_SHOT else [cell.shots]:
            means.setdefault((cell.method, s), {})[cell.dataset] = float(score.accuracy.mean())
    everywhere = {
        key: own for key, own in means.items() if datasets and own.keys() >= set(datasets)
    }
    return {
        key: float(np.mean([own[dataset] for dataset in datasets]))
        for key, own in everywhere.items()
    }


def harmonic_mean(base: float, new: float) -> float:
    """Return 2·base·new / (base + new) of two mean accuracies, 0 for two zeros.

    Base-to-new results are published in this form.
    """
    return 2 * base * new / (base + new) if base + new else 0.0


def away(scores: Iterable[Cell]) -> list[Cell]:
    """Return the cells of prompts that are tested on another dataset than their own."""
    return [
        cell
        for cell in scores
        if cell.trained_on and cell.classes == "all" and cell.trained_on != cell.dataset
    ]


def methods_of(scores: Iterable[Cell]) -> list[str]:
    return in_rank({cell.method for cell in scores})


def in_rank(methods: Iterable[str]) -> list[str]:
    return sorted(methods, key=rank)


def rank(method: str) -> int:
    return list(ROWS).index(method)


def dataset_rank(name: str) -> int:
    """Return where a dataset stands in the paper's tables; what they do not have is behind."""
    own = name.partition(" (")[0]  # without what tells it from others of its name
    return PAPER_DATASETS.index(own) if own in PAPER_DATASETS else len(PAPER_DATASETS)


def in_order(names: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(names))
