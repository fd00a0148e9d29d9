"""The report over all runs below a folder: tables, and accuracy against shots."""

from collections.abc import Iterable

import numpy as np
from etils import epath

from dpt_jax.methods import ROWS, ZERO_SHOT
from dpt_jax.report.beside import beside_tables
from dpt_jax.report.cells import (
    Cell,
    Score,
    Scores,
    average_over_datasets,
    away,
    harmonic_mean,
    in_domain,
    in_order,
    in_rank,
    methods_of,
    rank,
    scores_of,
)
from dpt_jax.report.curves import Curves, Point, draw_curves
from dpt_jax.report.differences import difference_tables
from dpt_jax.report.one_run import CSV_FILE, FIGURE_FILE, TABLE_FILE
from dpt_jax.report.papers import read_published
from dpt_jax.report.selection import read_results, select
from dpt_jax.report.tables import CSVWriter, markdown
from dpt_jax.settings import shots_in_words


def few_shot_tables(scores: Scores) -> list[str]:
    """Return tables of methods × shots, one a dataset, and their average."""
    cells = in_domain(scores)
    trained = [cell for cell in cells if cell.trained_on]
    # What is only tested on, with prompts of another dataset, stands in the table of that, also
    # zero-shot.
    shown_elsewhere = {cell.dataset for cell in away(scores)}.difference(
        cell.dataset for cell in trained
    )
    datasets = in_order(cell.dataset for cell in cells if cell.dataset not in shown_elsewhere)
    shots = sorted({cell.shots for cell in trained}, key=lambda s: (s < 0, s)) or [0]
    tables = []
    for dataset in datasets:
        own = {cell: score for cell, score in cells.items() if cell.dataset == dataset}
        rows = []
        for method in methods_of(own):
            score_at = {cell.shots: score for cell, score in own.items() if cell.method == method}
            if method == ZERO_SHOT:
                score_at = dict.fromkeys(shots, score_at[0])
            rows.append([ROWS[method].label, *(str(score_at.get(s, "")) for s in shots)])
        images = next(iter(own.values())).images
        title = (
            f"### {dataset}\n\nAccuracy (%) on {images:,} test images, {_seeds(own.values())}.\n\n"
        )
        tables.append(title + markdown(["method", *map(shots_in_words, shots)], rows))
    average = average_over_datasets(cells, datasets)
    if len(datasets) > 1 and average:
        rows = [
            [
                ROWS[method].label,
                *(f"{average[method, s]:.1f}" if (method, s) in average else "" for s in shots),
            ]
            for method in methods_of(cells)
        ]
        title = f"### Average over {len(datasets)} datasets\n\n"
        title += "Mean of their accuracies (%), where all have run.\n\n"
        tables.append(title + markdown(["method", *map(shots_in_words, shots)], rows))
    return tables


def base_to_new_tables(scores: Scores) -> list[str]:
    """Return a table for each dataset whose base classes were trained on.

    It has the accuracy on base and on new classes, and their harmonic mean.
    """
    tables = []
    for dataset in in_order(cell.dataset for cell in scores if cell.classes == "base"):
        rows = []
        halves: dict[tuple[str, int], dict[str, Score]] = {}
        for cell, score in scores.items():
            trained_here = (cell.trained_on, cell.trained_classes) in (("", ""), (dataset, "base"))
            if cell.dataset == dataset and cell.classes != "all" and trained_here:
                halves.setdefault((cell.method, cell.shots), {})[cell.classes] = score
        for (method, shots), own in sorted(
            halves.items(), key=lambda item: (rank(item[0][0]), item[0][1])
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
            rows.append([ROWS[method].label, *texts])
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
    """Return a table for each dataset that prompts were trained on.

    It has their accuracy there and on each other dataset.
    """
    tables = []
    elsewhere = away(scores)
    for source, half in in_order((cell.trained_on, cell.trained_classes) for cell in elsewhere):
        targets = in_order(
            c.dataset for c in elsewhere if (c.trained_on, c.trained_classes) == (source, half)
        )
        rows, shown = [], []
        for method in methods_of(scores):
            trained = ("", "") if method == ZERO_SHOT else (source, half)
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
                        ROWS[method].label,
                        _shots(shots),
                        *(str(score or "") for score in found),
                        average,
                    ]
                )
        header = ["method", "shots", f"{source} (source)", *targets, "average of targets"]
        if len(targets) == 1:
            header, rows = header[:-1], [row[:-1] for row in rows]
        name = f"{source} ({half} classes)" if half in ("base", "new") else source
        title = f"### From {name} to other datasets\n\n"
        title += f"Prompts trained on {name}, accuracy (%), {_seeds(shown)}.\n\n"
        tables.append(title + markdown(header, rows))
    return tables


def _shots(shots: int) -> str:
    return {-1: "all", 0: ""}.get(shots, str(shots))


def _seeds(scores: Iterable[Score]) -> str:
    """Return such as "mean ± standard deviation of 3 seeds"."""
    counts = sorted({len(score.accuracy) for score in scores})
    if not counts or counts == [1]:
        return "one seed"
    # Zero-shot, which needs no seeds, is of one.
    counts = [count for count in counts if count > 1]
    most = f" to {counts[-1]}" if len(counts) > 1 else ""
    return f"mean ± standard deviation of {counts[0]}{most} seeds"


def write_csv(scores: Scores, file: epath.Path) -> None:
    """Write one line for each cell."""
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


def curves(cells: Scores) -> Curves:
    """Return accuracy against shots, of cells that differ in method and shots only.

    Runs on all images have no place among shots.
    """
    return {
        method: sorted(
            Point(cell.shots, score.accuracy.mean(), score.accuracy.std())
            for cell, score in cells.items()
            if cell.method == method and cell.shots >= 0
        )
        for method in methods_of(cell for cell in cells if cell.shots >= 0)
    }


def report_panels(scores: Scores) -> dict[str, Curves]:
    """Return what the paper's figure shows, {title: {method: points}}.

    The average comes first, then each dataset; without a training there is nothing.
    """
    cells = in_domain(scores)
    datasets = in_order(cell.dataset for cell in cells if cell.shots > 0)
    panels: dict[str, Curves] = {}
    average: dict[str, list[Point]] = {}
    for (method, shots), mean in sorted(average_over_datasets(cells, datasets).items()):
        if shots > 0:
            average.setdefault(method, []).append(Point(shots, mean, 0.0))
    if len(datasets) > 1 and set(average) - {ZERO_SHOT}:
        panels[f"average over {len(datasets)} datasets"] = {
            method: average[method] for method in in_rank(average)
        }
    for dataset in datasets:
        panels[dataset] = curves(
            {cell: score for cell, score in cells.items() if cell.dataset == dataset}
        )
    return panels


def report_folder(folder: epath.Path, beside: epath.Path | None = None) -> tuple[str, list[str]]:
    """Write the report over all runs below a folder; return Markdown and files' names.

    beside: a CSV file of published accuracies that ours are set beside.
    """
    results, notes = select(read_results(folder))
    scores = scores_of(results)
    published = read_published(beside, {cell.dataset for cell in scores}) if beside else {}
    tables = [
        *few_shot_tables(scores),
        *difference_tables(scores),
        *base_to_new_tables(scores),
        *transfer_tables(scores),
    ]
    if not tables:
        tables = [
            "No run here has a counterpart to stand beside in a table; each is a line of "
            f"{CSV_FILE}."
        ]
    tables += beside_tables(scores, published)
    if notes:
        tables.append("\n".join(["To know:\n", *(f"- {note}" for note in notes)]))
    text = "\n\n".join(tables) + "\n"
    (folder / TABLE_FILE).write_text(text, encoding="utf-8")
    write_csv(scores, folder / CSV_FILE)
    if panels := report_panels(scores):
        draw_curves(panels, folder / FIGURE_FILE)
    return text, [TABLE_FILE, CSV_FILE, *([FIGURE_FILE] if panels else [])]
