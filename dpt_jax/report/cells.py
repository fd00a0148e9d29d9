"""The results of many runs by table cell: runs that differ in their seed only."""

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from dpt_jax.errors import UserError
from dpt_jax.inference.results import RESULTS_FILE, read_result
from dpt_jax.methods import METHODS, ZERO_SHOT

UNKNOWN = "unknown"


class Cell(NamedTuple):
    """Runs that differ in their seed only. trained_on and trained_classes are "" for zero-shot, and UNKNOWN where
    a checkpoint does not say it."""

    method: str
    trained_on: str
    trained_classes: str
    shots: int
    dataset: str
    classes: str


class Score(NamedTuple):
    """Accuracy and macro F1 of a cell in percent: one number a seed; and the test images of a run."""

    accuracy: np.ndarray
    macro_f1: np.ndarray
    images: int

    def __str__(self) -> str:
        """The mean, and of several seeds their standard deviation (of the population, as published tables have it)."""
        deviation = f" ± {self.accuracy.std():.1f}" if len(self.accuracy) > 1 else ""
        return f"{self.accuracy.mean():.1f}{deviation}"


Scores = Mapping[Cell, Score]


T = TypeVar("T")


def read_results(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Every results.json below a folder, in the order of their paths.  Raises UserError where there is none."""
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not a folder: give the one that holds the runs, such as runs/."
        )
    files = sorted(folder.rglob(RESULTS_FILE))
    if not files:
        raise UserError(
            f"{folder} holds no finished run (no {RESULTS_FILE} in it or below): train first."
        )
    return [read_result(file) for file in files]


def scores_of(results: Iterable[Mapping[str, Any]]) -> dict[Cell, Score]:
    """The results with seeds put together; the same seed counts once, however often it was evaluated."""
    by_cell: dict[Cell, dict[int, Mapping[str, Any]]] = {}
    for one in results:
        nothing = "" if one["method"] == ZERO_SHOT else UNKNOWN
        trained = one["trained_on"] or {"dataset": nothing, "classes": nothing}
        # Zero-shot has no sample and no seed.
        shots, seed = (0, 0) if one["method"] == ZERO_SHOT else (one["shots"], one["seed"])
        cell = Cell(
            one["method"],
            trained["dataset"],
            trained["classes"],
            shots,
            one["dataset"],
            one["classes"],
        )
        by_cell.setdefault(cell, {})[seed] = one
    scores = {}
    for cell, runs in by_cell.items():
        ordered = [runs[seed] for seed in sorted(runs)]
        accuracy, macro_f1 = (
            100 * np.array([run[key] for run in ordered]) for key in ("accuracy", "macro_f1")
        )
        scores[cell] = Score(accuracy, macro_f1, ordered[0]["n"])
    return scores


def in_domain(scores: Scores) -> dict[Cell, Score]:
    """The cells tested on all classes of what they were trained on, and zero-shot."""
    return {
        cell: score
        for cell, score in scores.items()
        if cell.classes == "all"
        and (cell.trained_on, cell.trained_classes) in (("", ""), (cell.dataset, "all"))
    }


def average_over_datasets(cells: Scores, datasets: Sequence[str]) -> dict[tuple[str, int], float]:
    """{(method, shots): mean accuracy}, where the method has run with these shots on every one of the datasets."""
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
    """2·base·new / (base + new) of two mean accuracies, as base-to-new results are published; 0 for two zeros."""
    return 2 * base * new / (base + new) if base + new else 0.0


def away(scores: Iterable[Cell]) -> list[Cell]:
    """The cells of prompts that are tested on another dataset than their own."""
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
    return list(METHODS).index(method)


def in_order(names: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(names))
