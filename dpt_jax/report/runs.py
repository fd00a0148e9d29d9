"""The report on all runs of a folder: tables, CSV files and figures.

Accuracies can be compared with published ones from a CSV file.
"""

import csv
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from etils import epath
from tabulate import LATEX_ESCAPE_RULES

from dpt_jax.config import shots_in_words
from dpt_jax.data.catalogue import PAPER_DATASETS, SHIFTED_IMAGENETS
from dpt_jax.errors import UserError
from dpt_jax.io import reading, write_whole
from dpt_jax.methods import ROWS, ZERO_SHOT
from dpt_jax.report import CELL, HALVES, HARMONIC, csv_of, in_order, markdown, results
from dpt_jax.report.one_run import CSV_FILE, FIGURE_FILE, IN_A_ROW, TABLE_FILE, png, pyplot

OF_TARGETS = "average of targets"
REFERENCES = (ZERO_SHOT, "vpt")  # the methods that gains are measured against
RUNS_FILE, CLASSES_FILE = "runs.csv", "classes.csv"
LATEX_FILE, HALVES_FILE = "report.tex", "base_to_new.png"
HALF_COLOURS = {"base": "#0072B2", "new": "#E69F00", HARMONIC: "#999999"}
IN_A_COLUMN = 14  # methods of a legend
DIGITS = "%.5f"  # of accuracies and the like in CSV files, which are from 0 to 1
CELL_COLUMNS = [*CELL, "images", "seeds", "accuracy_mean", "accuracy_std", "macro_f1_mean",
                "macro_f1_std"]  # fmt: skip
RUN_COLUMNS = [
    *("method", "dataset", "classes", "trained_on", "trained_classes", "shots", "seed"),
    *("accuracy", "balanced_accuracy", "macro_f1", "zero_shot_accuracy", "ece", "n", "unreadable"),
    *("parameters", "seconds", "selection", "task", "path", "excluded"),
]
AVERAGE = "average"  # over the paper's datasets
PLACE = ["method", "dataset", "shots", "classes"]  # what identifies an accuracy in the file
COLUMNS = [*PLACE, "accuracy", "source"]
# The same of runs: `place` is a dataset, or AVERAGE over the cells of several.
KEYS = ["method", "shots", "place", "classes"]


class Table(NamedTuple):
    """A table of a report, with its title, and words about its numbers."""

    title: str
    words: str
    cells: pd.DataFrame

    def markdown(self) -> str:
        """Return a heading, the words and the table."""
        return f"### {self.title}\n\n{self.words}\n\n{markdown(self.cells)}"

    def latex(self) -> str:
        """Return a table environment, which needs the package booktabs."""
        words = f"{self.title}: {self.words}"
        caption = "".join(LATEX_ESCAPE_RULES.get(character, character) for character in words)
        rows = self.cells.to_markdown(index=False, tablefmt="latex_booktabs", disable_numparse=True)
        text = f"\\begin{{table}}\n\\centering\n\\caption{{{caption}}}\n{rows}\n\\end{{table}}\n"
        return text.replace("±", "$\\pm$")


def table(
    title: str,
    words: str,
    cells: pd.DataFrame,
    by: str = "shots",
    columns: Sequence[str] = (),
    spread: str = "mean ± standard deviation of",
    more: str = "",
    sign: str = "",
) -> Table:
    """Return a table of methods × shots, or of methods and shots × the `columns` of `by`.

    `words` describe the numbers. `spread` and the number of seeds are appended, then `more`. If the
    number of seeds differs, each cell shows its n. sign="+" shows the sign of positive numbers too.

    cells: method, shots, `by`, accuracy_mean, perhaps spread, and seeds.
    """
    cells = in_order(cells, ["method", "shots"])
    text = cells.accuracy_mean.map(f"{{:{sign}.1f}}".format)
    if "spread" in cells:
        text += cells.spread.map(" ± {:.1f}".format).where(cells.spread.notna(), "")
    seeds = cells.seeds[cells.method != ZERO_SHOT].astype(str)  # zero-shot CLIP has none
    if {*seeds} == {"1"}:
        words += ", one seed"
    elif len(seeds):
        words += f", {spread} {seeds.iloc[0] if seeds.nunique() == 1 else 'n'} seeds"
    if seeds.nunique() > 1:
        text += (" (n=" + seeds + ")").reindex(text.index).fillna("")
    if by == "shots":
        columns = [shots_in_words(shots) for shots in in_order(cells, ["shots"]).shots.unique()]
        cells = cells.assign(shots=cells.shots.map(shots_in_words))
    else:
        cells = cells.assign(shots=cells.shots.replace({0: "", -1: "all"}).astype(str))
    shown = cells.assign(text=text).pivot_table(
        "text", ["method"] if by == "shots" else ["method", "shots"], by, "first", sort=False
    )
    shown = shown.reindex(columns=list(columns)).fillna("").reset_index()
    shown["method"] = shown.method.map(lambda method: ROWS[method].label)
    return Table(title, f"{words}.{more}", shown)


def report_folder(
    folder: epath.Path, beside: epath.Path | None = None, latex: bool = False
) -> tuple[str, list[str]]:
    """Write the report on all runs in and below a folder; return its Markdown and its file names.

    beside: a CSV file of published accuracies to compare with. latex: whether to write report.tex.
    """
    frame = results(folder)
    # A seed counts once, however often it was evaluated.
    counted = frame[frame.excluded == ""].drop_duplicates([*CELL, "seed"], keep="last")
    runs = counted.assign(accuracy=100 * counted.accuracy)  # tables are in percent
    few_shot, halves = few_shot_runs(runs), base_and_new(runs)
    cells = few_shot_cells(few_shot)
    tables = [
        *few_shot_tables(cells),
        *gain_tables(few_shot),
        *base_to_new_tables(halves),
        *transfer_tables(runs),
    ]
    notes = [] if tables else [f"None of these runs is for a table; see {RUNS_FILE}."]
    if beside:
        compared, missing = compare(runs, read_published(beside))
        tables += compared
        notes.append(missing)
    if excluded := [f"- {reason}" for reason in frame.excluded.unique() if reason]:
        notes.append("\n".join(["Note:\n", *excluded]))
    text = "\n\n".join(filter(None, [*(one.markdown() for one in tables), *notes])) + "\n"
    contents: dict[str, str | bytes] = {
        TABLE_FILE: text,
        CSV_FILE: csv_of(summarise(counted)[CELL_COLUMNS], DIGITS),
        RUNS_FILE: csv_of(frame[RUN_COLUMNS], DIGITS),
        CLASSES_FILE: csv_of(by_class(counted), DIGITS),
    }
    if latex:
        contents[LATEX_FILE] = "\n".join(one.latex() for one in tables)
    panels = {title: own[own.shots > 0] for title, own in cells.items()}  # not of all images
    panels = {title: own for title, own in panels.items() if {*own.method} - {ZERO_SHOT}}
    if panels:
        contents[FIGURE_FILE] = draw_curves(panels)
    if len(halves):
        contents[HALVES_FILE] = draw_halves(halves)
    for name, content in contents.items():
        write_whole(folder / name, content)
    return text, [*contents]


def by_class(runs: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each class of each run."""
    rows = [
        {**run, "class": name, "images": one["n"], "accuracy": one["accuracy"], "f1": one["f1"]}
        for run in runs[[*CELL, "seed", "per_class"]].to_dict("records")
        for name, one in run["per_class"].items()
    ]
    return pd.DataFrame(rows, columns=[*CELL, "seed", "class", "images", "accuracy", "f1"])


def few_shot_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs tested on all classes of their training dataset.

    Zero-shot CLIP, which has no shots, is repeated for each number of shots. On the targets of a
    transfer it does not count.
    """
    own = trained_there(runs[runs.classes == "all"])
    is_zero_shot = own.method == ZERO_SHOT
    zero_shot, trained = own[is_zero_shot], own[~is_zero_shot]
    if trained.empty:
        return zero_shot
    targets = runs.dataset[(runs.trained_on != "") & (runs.trained_on != runs.dataset)]
    zero_shot = zero_shot[~zero_shot.dataset.isin({*targets} - {*trained.dataset})]
    repeated = [zero_shot.assign(shots=number) for number in trained.shots.unique()]
    return in_order(pd.concat([*repeated, trained]), ["dataset", "method", "shots"])


def few_shot_cells(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the cells of each dataset by its name, and those of their average by its title."""
    cells = summarise(runs)
    found = dict(iter(cells.groupby("dataset", sort=False)))
    averages = average(cells, ["method", "shots"], len(found))
    if len(found) > 1 and len(averages):
        found[f"Average over {len(found)} datasets"] = averages
    return found


def few_shot_tables(cells: dict[str, pd.DataFrame]) -> list[Table]:
    """Return a table of methods × shots for each entry of `few_shot_cells`."""
    tables = []
    for title, own in cells.items():
        if "images" not in own:
            words = "Mean accuracy (%) of the datasets, if all have run"
            tables.append(table(title, words, own, spread="over"))
            continue
        words, tasks = f"Accuracy (%) on {own.images.iloc[0]:,} test images", own.task.unique()
        more = f" Task {tasks[0]}." if len(tasks) == 1 else ""
        for by, chosen in own[own.selection != "none"].groupby("selection", sort=False):
            names = ", ".join(ROWS[method].label for method in chosen.method.unique())
            more += f" Settings chosen by {by}: {names}."
        if title in (*PAPER_DATASETS, *SHIFTED_IMAGENETS):
            more += " The images are public: CLIP may have seen them in its own training."
        tables.append(table(title, words, own, more=more))
    return tables


def gain_tables(runs: pd.DataFrame) -> list[Table]:
    """Return tables of methods × shots: the gain over zero-shot and over VPT, for each dataset.

    A gain is the mean difference between runs of one seed. Its standard error needs two seeds.
    """
    tables = []
    for dataset, own in runs.groupby("dataset", sort=False):
        for reference in REFERENCES:
            keys = ["shots"] if reference == ZERO_SHOT else ["shots", "seed"]
            theirs = own.loc[own.method == reference, [*keys, "accuracy"]]
            others = own[~own.method.isin([ZERO_SHOT, reference])]
            both = others.merge(theirs, on=keys, suffixes=("", "_of_reference"))
            gains = summarise(both.assign(accuracy=both.accuracy - both.accuracy_of_reference))
            gains = gains.assign(spread=gains.error)[gains.seeds > 1]
            if len(gains):
                title = f"{dataset}: gain over {ROWS[reference].label}"
                spread = "mean ± standard error of the differences of the same"
                tables.append(table(title, "Points of accuracy", gains, spread=spread, sign="+"))
    return tables


def base_and_new(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the cells of base classes, of new classes and of their harmonic means."""
    halves = trained_there(runs[runs.classes.isin(HALVES)])
    cells = summarise(with_harmonic_means(halves, ["method", "shots", "dataset"]))
    return cells.assign(spread=cells.spread.where(cells.classes != HARMONIC))


def base_to_new_tables(halves: pd.DataFrame) -> list[Table]:
    """Return a table for each dataset of the cells of `base_and_new`."""
    words = "Trained on the base half of the classes, accuracy (%)"
    return [
        table(f"{dataset}: base to new classes", words, own, "classes", [*HALVES, HARMONIC])
        for dataset, own in halves.groupby("dataset", sort=False)
    ]


def transfer_tables(runs: pd.DataFrame) -> list[Table]:
    """Return a table for each dataset whose prompts were tested on other datasets."""
    tables, runs = [], runs[runs.classes == "all"]
    elsewhere = runs[(runs.trained_on != "") & (runs.trained_on != runs.dataset)]
    for (source, half), there in elsewhere.groupby(["trained_on", "trained_classes"], sort=False):
        targets = [*there.dataset.unique()]
        trained = (runs.trained_on == source) & (runs.trained_classes == half)
        at_source = trained & (runs.dataset == source) & runs.method.isin(there.method)
        zero_shot = (runs.method == ZERO_SHOT) & runs.dataset.isin([source, *targets])
        cells = summarise(pd.concat([there, runs[at_source | zero_shot]]))
        columns, in_source = [f"{source} (source)", *targets], cells.dataset == source
        if len(targets) > 1:
            averages = average(cells[~in_source], ["method", "shots"], len(targets))
            cells = pd.concat([cells, averages.assign(dataset=OF_TARGETS)], ignore_index=True)
            columns.append(OF_TARGETS)
        cells["dataset"] = cells.dataset.replace({source: columns[0]})
        name = f"{source} ({half} classes)" if half in HALVES else source
        words = f"Prompts trained on {name}, accuracy (%)"
        tables.append(table(f"From {name} to other datasets", words, cells, "dataset", columns))
    return tables


def read_published(file: epath.Path) -> pd.DataFrame:
    """Read a CSV file of published accuracies, in percent. Shots are 0 for zero-shot."""
    with reading(file, f"a CSV file with the columns {', '.join(COLUMNS)}"):
        lines = file.read_text(encoding="utf-8-sig").splitlines()
        lines = [line for line in lines if line.strip(" ,;\t") and not line.startswith("#")]
        header, *rows = ([cell.strip() for cell in row] for row in csv.reader(lines, strict=True))
        if unknown := {*header} - {*COLUMNS}:
            raise ValueError(f"{min(unknown)!r} is not one of these")
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
        words = "Accuracy (%), the difference in points, and the same in standard errors of our "
        words += "mean over the seeds."
        if sources := "; ".join(source for source in own.source.unique() if source):
            words += f" Published: {sources}."
        cells = _cells(own) if in_halves else _cells(own).drop(columns="classes")
        tables.append(Table(title, words, cells))
    if missing.empty:
        return tables, ""
    count = f"{len(missing)} of {len(published)}"
    return tables, f"{count} published numbers have no run here, such as {_row(missing)}."


def _counterparts(runs: pd.DataFrame) -> pd.DataFrame:
    """Return mean, error and seeds by KEYS: of each dataset, and of the paper's together."""
    runs = trained_there(runs)
    papers = runs[runs.dataset.isin(PAPER_DATASETS)]
    runs = pd.concat([runs.assign(place=runs.dataset), papers.assign(place=AVERAGE)])
    runs = with_harmonic_means(runs, ["method", "shots", "place"])
    cells = summarise(runs, [*KEYS, "dataset"])
    whole = cells.place == AVERAGE
    single, papers = average(cells[~whole], KEYS, 1), cells[whole]
    return pd.concat([single, average(papers, KEYS, len(PAPER_DATASETS))])


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
            "seeds": own.seeds.mask(own.method == ZERO_SHOT, ""),
        }
    )


def trained_there(runs: pd.DataFrame) -> pd.DataFrame:
    """Select runs tested on their training dataset: all classes, or halves after training on base.

    Zero-shot runs are included.
    """
    halves = runs.classes.isin(HALVES)
    trained = runs.trained_classes == np.where(halves, "base", "all")
    return runs[(runs.method == ZERO_SHOT) | ((runs.trained_on == runs.dataset) & trained)]


def with_harmonic_means(runs: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Append rows whose accuracy averages to the harmonic mean of base and new classes.

    b and n are the mean accuracies of the runs with both halves, over the seeds and then over the
    datasets. Each run has the linearised harmonic mean, 2 (n² base + b² new) / (b + n)². The
    standard error of these rows is then that of the harmonic mean.

    by: the columns of a harmonic mean, without `classes`.
    """
    each = [*dict.fromkeys([*by, "dataset"])]
    base, new = (runs[runs.classes == half] for half in HALVES)
    both = base.merge(new[[*each, "seed", "accuracy"]], on=[*each, "seed"], suffixes=("", "_new"))
    means = both.groupby(each)[["accuracy", "accuracy_new"]].mean().groupby(by).mean()
    both = both.join(means.set_axis(["b_mean", "n_mean"], axis=1), on=by)
    b, n = both.b_mean, both.n_mean
    both["accuracy"] = 2 * (n**2 * both.accuracy + b**2 * both.accuracy_new) / (b + n) ** 2
    return pd.concat([runs, both.assign(classes=HARMONIC)[runs.columns]])


def summarise(runs: pd.DataFrame, by: list[str] = CELL) -> pd.DataFrame:
    """Return a row for each cell, over its seeds.

    accuracy_std is that of the population, as in published tables; `spread` is the same, but NaN
    for one seed, and `error` is the standard error of the mean.
    """

    def std(values: pd.Series) -> float:
        return values.std(ddof=0)

    cells = runs.groupby(by, sort=False, as_index=False).agg(
        images=("n", "first"),
        seeds=("seed", "count"),
        accuracy_mean=("accuracy", "mean"),
        accuracy_std=("accuracy", std),
        error=("accuracy", "sem"),
        macro_f1_mean=("macro_f1", "mean"),
        macro_f1_std=("macro_f1", std),
        selection=("selection", "first"),
        task=("task", "first"),
        name=("name", "first"),
        backbone=("backbone", "first"),
    )
    return cells.assign(spread=cells.accuracy_std.where(cells.seeds > 1))


def average(cells: pd.DataFrame, by: list[str], datasets: int) -> pd.DataFrame:
    """Average cells over datasets, if this number of them has run; `seeds` is a text.

    Versions of one dataset are not averaged, nor are datasets seen by several CLIPs.
    """

    def span(numbers: pd.Series) -> str:
        return " to ".join(dict.fromkeys([str(numbers.min()), str(numbers.max())]))

    found = cells.groupby(by, sort=False, as_index=False).agg(
        accuracy_mean=("accuracy_mean", "mean"),
        error=("error", lambda errors: np.linalg.norm(errors) / len(errors)),
        seeds=("seeds", span),
        datasets=("name", "nunique"),
        backbones=("backbone", "nunique"),
    )
    return found[(found.datasets == datasets) & (found.backbones == 1)]


def draw_curves(panels: Mapping[str, pd.DataFrame]) -> bytes:
    """Draw a grid of titled panels of accuracy against shots."""
    columns = min(len(panels), IN_A_ROW)
    rows = -(-len(panels) // columns)
    legend: dict[str, Any] = {}
    size = (max(3.6 * columns, 5) + 2.5, 3.2 * rows)
    figure, grid = pyplot().subplots(rows, columns, figsize=size, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (title, cells) in zip(grid.flat, panels.items(), strict=False):
        draw_panel(axes, title, cells)
        handles, labels = axes.get_legend_handles_labels()
        legend |= zip(labels, handles, strict=True)
    columns = -(-len(legend) // IN_A_COLUMN)
    figure.legend(legend.values(), legend, loc="outside right center", ncols=columns)
    return png(figure)


def draw_panel(axes: Any, title: str, cells: pd.DataFrame) -> None:
    """Draw curves with bars of one standard deviation, in percent; zero-shot is a line."""
    methods = [name for name in ROWS if name in {*cells.method}]
    for i, method in enumerate(methods):
        own, style = cells[cells.method == method].sort_values("shots"), ROWS[method]
        common = {"color": style.colour, "label": style.label}
        if method == ZERO_SHOT:
            axes.axhline(own.accuracy_mean.iloc[0], linestyle="--", linewidth=1, **common)
            continue
        # A small shift keeps the bars of the methods apart.
        shots = own.shots * 2 ** (0.05 * (i - len(methods) / 2))
        axes.errorbar(shots, own.accuracy_mean, own.get("spread"), marker=style.marker,
                      markersize=4, capsize=2, linewidth=1.2, **common)  # fmt: skip
    ticks = sorted({*cells.shots})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(shots) for shots in ticks])
    axes.set_xlim(ticks[0] / 1.3, ticks[-1] * 1.3)
    axes.minorticks_off()
    axes.set(xlabel="shots (training images per class)", ylabel="test accuracy (%)", title=title)


def draw_halves(cells: pd.DataFrame) -> bytes:
    """Draw bars of base classes, new classes and their harmonic mean, one panel a dataset."""
    datasets = cells.dataset.unique()
    size = (8, 3.2 * len(datasets))
    figure, grid = pyplot().subplots(len(datasets), 1, figsize=size, squeeze=False)
    for axes, dataset in zip(grid[:, 0], datasets, strict=True):
        own = in_order(cells[cells.dataset == dataset], ["method", "shots"])
        table = own.pivot_table("accuracy_mean", ["method", "shots"], "classes", sort=False)
        table = table.reindex(columns=[*HALF_COLOURS])
        table.index = [
            f"{ROWS[method].label}\n{shots_in_words(shots)}" if shots else ROWS[method].label
            for method, shots in table.index
        ]
        table.plot.bar(ax=axes, color=HALF_COLOURS, width=0.8, rot=0, legend=False, fontsize=8)
        for name, bars in zip(HALF_COLOURS, axes.containers, strict=True):
            # No seed may have both halves, and then there is no harmonic mean.
            labels = table[name].map("{:.0f}".format).replace("nan", "")
            axes.bar_label(bars, labels, fontsize=7)
        axes.set(title=f"{dataset}: base to new classes", ylabel="test accuracy (%)")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return png(figure)
