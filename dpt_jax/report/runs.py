"""Tables and figures of finished runs.

    python -m dpt_jax.report RUNS_DIR           over all runs below a folder
    python -m dpt_jax.report WORKDIR            over the classes of one run
    python -m dpt_jax.report --html WORKDIR     one page with all there is to see of a run

Over a folder: mean ± standard deviation of the seeds for each method and
dataset, as Markdown (printed, and report.md) and CSV (report.csv), and accuracy
against shots (report.png). Over one run: accuracy of each class (report.md,
report.csv), the confusion matrix (report.png), the training (training.png) and
how sure the answers are (reliability.png). The page (report.html) has these,
the settings, the features before and after, and answers with heat maps. All
are written there.
"""

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from absl import flags

from dpt_jax.commands import flags as cli
from dpt_jax.errors import UserError
from dpt_jax.inference.evaluation import RESULTS_FILE, read_result
from dpt_jax.report import plots
from dpt_jax.report.one_run import CSV_FILE, FIGURE_FILE, TABLE_FILE, report_run
from dpt_jax.report.tables import CSVWriter, markdown
from dpt_jax.runtime.console import say
from dpt_jax.settings.config import shots_in_words

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
        nothing = "" if one["method"] == "zeroshot" else UNKNOWN
        trained = one["trained_on"] or {"dataset": nothing, "classes": nothing}
        # Zero-shot has no sample and no seed.
        shots, seed = (0, 0) if one["method"] == "zeroshot" else (one["shots"], one["seed"])
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


def few_shot_tables(scores: Scores) -> list[str]:
    """For each dataset, and on average over them where there are several: methods × shots."""
    cells = in_domain(scores)
    trained = [cell for cell in cells if cell.trained_on]
    # What is only tested on, with prompts of another dataset, stands in the table of that, also zero-shot.
    shown_elsewhere = {cell.dataset for cell in _away(scores)}.difference(
        cell.dataset for cell in trained
    )
    datasets = _in_order(cell.dataset for cell in cells if cell.dataset not in shown_elsewhere)
    shots = sorted({cell.shots for cell in trained}, key=lambda s: (s < 0, s)) or [0]
    tables = []
    for dataset in datasets:
        own = {cell: score for cell, score in cells.items() if cell.dataset == dataset}
        rows = []
        for method in _methods(own):
            score_at = {cell.shots: score for cell, score in own.items() if cell.method == method}
            if method == "zeroshot":
                score_at = dict.fromkeys(shots, score_at[0])
            rows.append([plots.LABELS[method], *(str(score_at.get(s, "")) for s in shots)])
        images = next(iter(own.values())).images
        title = (
            f"### {dataset}\n\nAccuracy (%) on {images:,} test images, {_seeds(own.values())}.\n\n"
        )
        tables.append(title + markdown(["method", *map(shots_in_words, shots)], rows))
    average = average_over_datasets(cells, datasets)
    if len(datasets) > 1 and average:
        rows = [
            [
                plots.LABELS[method],
                *(f"{average[method, s]:.1f}" if (method, s) in average else "" for s in shots),
            ]
            for method in _methods(cells)
        ]
        title = f"### Average over {len(datasets)} datasets\n\nMean of their accuracies (%), where all have run.\n\n"
        tables.append(title + markdown(["method", *map(shots_in_words, shots)], rows))
    return tables


def average_over_datasets(cells: Scores, datasets: Sequence[str]) -> dict[tuple[str, int], float]:
    """{(method, shots): mean accuracy}, where the method has run with these shots on every one of the datasets."""
    means: dict[tuple[str, int], dict[str, float]] = {}
    shots = {cell.shots for cell in cells if cell.trained_on} or {0}
    for cell, score in cells.items():
        for s in shots if cell.method == "zeroshot" else [cell.shots]:
            means.setdefault((cell.method, s), {})[cell.dataset] = float(score.accuracy.mean())
    everywhere = {
        key: own for key, own in means.items() if datasets and own.keys() >= set(datasets)
    }
    return {
        key: float(np.mean([own[dataset] for dataset in datasets]))
        for key, own in everywhere.items()
    }


def base_to_new_tables(scores: Scores) -> list[str]:
    """For each dataset: prompts trained on the base classes, on base and on new ones, and the harmonic mean."""
    tables = []
    for dataset in _in_order(cell.dataset for cell in scores if cell.classes == "base"):
        rows = []
        halves: dict[tuple[str, int], dict[str, Score]] = {}
        for cell, score in scores.items():
            trained_here = (cell.trained_on, cell.trained_classes) in (("", ""), (dataset, "base"))
            if cell.dataset == dataset and cell.classes != "all" and trained_here:
                halves.setdefault((cell.method, cell.shots), {})[cell.classes] = score
        for (method, shots), own in sorted(
            halves.items(), key=lambda item: (_rank(item[0][0]), item[0][1])
        ):
            if own.keys() != {"base", "new"}:
                continue
            base, new = own["base"].accuracy.mean(), own["new"].accuracy.mean()
            texts = [
                _shots(shots),
                str(own["base"]),
                str(own["new"]),
                f"{harmonic_mean(base, new):.1f}",
            ]
            rows.append([plots.LABELS[method], *texts])
        if rows:
            all_halves = [score for own in halves.values() for score in own.values()]
            title = f"### {dataset}: base to new classes\n\n"
            title += (
                f"Trained on the base half of the classes, accuracy (%), {_seeds(all_halves)}.\n\n"
            )
            tables.append(
                title + markdown(["method", "shots", "base", "new", "harmonic mean"], rows)
            )
    return tables


def transfer_tables(scores: Scores) -> list[str]:
    """For each dataset that prompts were taken from: what they reach there and on each other dataset."""
    tables = []
    away = _away(scores)
    for source, half in _in_order((cell.trained_on, cell.trained_classes) for cell in away):
        targets = _in_order(
            c.dataset for c in away if (c.trained_on, c.trained_classes) == (source, half)
        )
        rows, shown = [], []
        for method in _methods(scores):
            trained = ("", "") if method == "zeroshot" else (source, half)
            for shots in sorted({cell.shots for cell in scores if cell.method == method}):
                found = [
                    scores.get(Cell(method, *trained, shots, name, "all"))
                    for name in (source, *targets)
                ]
                on_targets = [score.accuracy.mean() for score in found[1:] if score]
                if not on_targets:
                    continue
                average = f"{np.mean(on_targets):.1f}" if len(on_targets) == len(targets) else ""
                shown += [score for score in found if score]
                rows.append(
                    [
                        plots.LABELS[method],
                        _shots(shots),
                        *(str(score or "") for score in found),
                        average,
                    ]
                )
        header = ["method", "shots", f"{source} (source)", *targets, "average of targets"]
        if len(targets) == 1:
            header, rows = header[:-1], [row[:-1] for row in rows]
        name = f"{source} ({half} classes)" if half in ("base", "new") else source
        title = f"### From {name} to other datasets\n\nPrompts trained on {name}, accuracy (%), {_seeds(shown)}.\n\n"
        tables.append(title + markdown(header, rows))
    return tables


def _away(scores: Iterable[Cell]) -> list[Cell]:
    """The cells of prompts that are tested on another dataset than their own."""
    return [
        cell
        for cell in scores
        if cell.trained_on and cell.classes == "all" and cell.trained_on != cell.dataset
    ]


def harmonic_mean(base: float, new: float) -> float:
    """2·base·new / (base + new) of two mean accuracies, as base-to-new results are published; 0 for two zeros."""
    return 2 * base * new / (base + new) if base + new else 0.0


def _methods(scores: Iterable[Cell]) -> list[str]:
    return _in_rank({cell.method for cell in scores})


def _in_rank(methods: Iterable[str]) -> list[str]:
    return sorted(methods, key=_rank)


def _rank(method: str) -> int:
    return list(plots.LABELS).index(method)


def _in_order(names: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(names))


def _shots(shots: int) -> str:
    return {-1: "all", 0: ""}.get(shots, str(shots))


def _seeds(scores: Iterable[Score]) -> str:
    """ "mean ± standard deviation of 3 seeds" """
    counts = sorted({len(score.accuracy) for score in scores})
    if not counts or counts == [1]:
        return "one seed"
    # Zero-shot, which needs no seeds, is of one.
    counts = [count for count in counts if count > 1]
    return f"mean ± standard deviation of {counts[0]}{f' to {counts[-1]}' if len(counts) > 1 else ''} seeds"


def write_csv(scores: Scores, file: pathlib.Path) -> None:
    """One line a cell."""
    with file.open("w", newline="", encoding="utf-8") as out:
        header = [
            *Cell._fields,
            "images",
            "seeds",
            "accuracy_mean",
            "accuracy_std",
            "macro_f1_mean",
            "macro_f1_std",
        ]
        writer = CSVWriter(out, header)
        for cell, score in scores.items():
            numbers = [
                score.accuracy.mean(),
                score.accuracy.std(),
                score.macro_f1.mean(),
                score.macro_f1.std(),
            ]
            writer.write(
                [*cell, score.images, len(score.accuracy), *(f"{number:.3f}" for number in numbers)]
            )


def curves(cells: Scores) -> plots.Curves:
    """Accuracy against shots, of cells that differ in method and shots only; runs on all images have no place."""
    return {
        method: sorted(
            plots.Point(cell.shots, score.accuracy.mean(), score.accuracy.std())
            for cell, score in cells.items()
            if cell.method == method and cell.shots >= 0
        )
        for method in _methods(cell for cell in cells if cell.shots >= 0)
    }


def report_panels(scores: Scores) -> dict[str, plots.Curves]:
    """What the paper's figure shows, {title: {method: points}}: the average and each dataset; {} without a training."""
    cells = in_domain(scores)
    datasets = _in_order(cell.dataset for cell in cells if cell.shots > 0)
    panels: dict[str, plots.Curves] = {}
    average: dict[str, list[plots.Point]] = {}
    for (method, shots), mean in sorted(average_over_datasets(cells, datasets).items()):
        if shots > 0:
            average.setdefault(method, []).append(plots.Point(shots, mean, 0.0))
    if len(datasets) > 1 and set(average) - {"zeroshot"}:
        panels[f"average over {len(datasets)} datasets"] = {
            method: average[method] for method in _in_rank(average)
        }
    for dataset in datasets:
        panels[dataset] = curves(
            {cell: score for cell, score in cells.items() if cell.dataset == dataset}
        )
    return panels


def report_folder(folder: pathlib.Path) -> tuple[str, list[str]]:
    """Writes the report over all runs below a folder: its Markdown, and the names of the files."""
    scores = scores_of(read_results(folder))
    tables = [*few_shot_tables(scores), *base_to_new_tables(scores), *transfer_tables(scores)]
    if not tables:
        tables = [
            f"No run here has a counterpart to stand beside in a table; each is a line of {CSV_FILE}."
        ]
    text = "\n\n".join(tables) + "\n"
    (folder / TABLE_FILE).write_text(text, encoding="utf-8")
    write_csv(scores, folder / CSV_FILE)
    if panels := report_panels(scores):
        plots.draw_curves(panels, folder / FIGURE_FILE)
    return text, [TABLE_FILE, CSV_FILE, *([FIGURE_FILE] if panels else [])]


def main(argv: Sequence[str]) -> None:
    if len(argv) != 2:
        raise UserError("give one folder: python -m dpt_jax.report RUNS_DIR.")
    folder = pathlib.Path(argv[1])
    if flags.FLAGS.html:
        from dpt_jax.report.page import write_page

        say(f"written: {write_page(folder)}")
        return
    if (folder / RESULTS_FILE).exists():
        text, written = report_run(folder)
    else:
        text, written = report_folder(folder)
    say(text)
    say(f"written to {folder}: {', '.join(written)}")


if __name__ == "__main__":
    flags.DEFINE_bool("html", False, "One page with all there is to see of one run.")
    cli.run(main)
