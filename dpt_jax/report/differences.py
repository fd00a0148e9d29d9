"""What a method gains over another one, seed by seed."""

import numpy as np

from dpt_jax.methods import ROWS, ZERO_SHOT
from dpt_jax.report.cells import Score, Scores, in_domain, in_order, methods_of
from dpt_jax.report.tables import markdown
from dpt_jax.settings import shots_in_words

REFERENCES = (ZERO_SHOT, "vpt")
FEWEST = 2  # seeds, of which alone a standard error can be had


def difference_tables(scores: Scores) -> list[str]:
    """Return tables of methods × shots: the gain over zero-shot and over VPT, one a dataset.

    There is none where no method has two seeds in common with the other one.
    """
    cells = in_domain(scores)
    tables = []
    for dataset in in_order(cell.dataset for cell in cells):
        own = {cell: score for cell, score in cells.items() if cell.dataset == dataset}
        tables += [table for reference in REFERENCES if (table := _table(own, dataset, reference))]
    return tables


def _table(cells: Scores, dataset: str, reference: str) -> str:
    """Return the table of one dataset and one reference, "" where there is nothing to compare."""
    score_at = {(cell.method, cell.shots): score for cell, score in cells.items()}
    gains: dict[tuple[str, int], str] = {}
    for cell, score in cells.items():
        other = score_at.get((reference, 0 if reference == ZERO_SHOT else cell.shots))
        if cell.method not in (ZERO_SHOT, reference) and other:
            # Zero-shot has one number for all seeds.
            paired = (
                score.accuracy - other.accuracy
                if reference == ZERO_SHOT
                else paired_gains(score, other)
            )
            if len(paired) >= FEWEST:
                error = paired.std(ddof=1) / np.sqrt(len(paired))
                gains[cell.method, cell.shots] = f"{paired.mean():+.1f} ± {error:.1f}"
    if not gains:
        return ""
    shots = sorted({s for _, s in gains}, key=lambda s: (s < 0, s))
    rows = [
        [ROWS[method].label, *(gains.get((method, s), "") for s in shots)]
        for method in methods_of(cells)
        if any(name == method for name, _ in gains)
    ]
    title = f"### {dataset}: gain over {ROWS[reference].label}\n\n"
    title += "Points of accuracy, mean ± standard error of the differences of the same seeds.\n\n"
    return title + markdown(["method", *map(shots_in_words, shots)], rows)


def paired_gains(score: Score, other: Score) -> np.ndarray:
    """Return the differences of the seeds that both have."""
    theirs = dict(zip(other.seeds, other.accuracy, strict=True))
    return np.array(
        [
            accuracy - theirs[seed]
            for seed, accuracy in zip(score.seeds, score.accuracy, strict=True)
            if seed in theirs
        ]
    )
