"""The report on all runs of a folder: tables, CSV files and figures."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from etils import epath

from dpt_jax.config import shots_in_words
from dpt_jax.data.catalogue import PAPER_DATASETS, SHIFTED_IMAGENETS
from dpt_jax.evaluation.results import RESULTS_FILE, read_result
from dpt_jax.io import as_path, write_whole
from dpt_jax.methods import ROWS, ZERO_SHOT
from dpt_jax.report.figures import draw_curves, draw_halves
from dpt_jax.report.frame import CELL, results, shots_rank
from dpt_jax.report.one_run import CSV_FILE, FIGURE_FILE, TABLE_FILE
from dpt_jax.report.published import HARMONIC, compare, harmonic_mean, read_published
from dpt_jax.report.tables import Table, csv_of

REFERENCES = (ZERO_SHOT, "vpt")  # the methods that gains are measured against
AVERAGE = "average of targets"
RUNS_FILE, CLASSES_FILE = "runs.csv", "classes.csv"
LATEX_FILE, HALVES_FILE = "report.tex", "base_to_new.png"
DIGITS = "%.5f"  # of accuracies and the like in CSV files, which are from 0 to 1
RUN_COLUMNS = [
    *("method", "dataset", "classes", "trained_on", "trained_classes", "shots", "seed"),
    *("accuracy", "balanced_accuracy", "macro_f1", "zero_shot_accuracy", "ece", "n", "unreadable"),
    *("parameters", "seconds", "selection", "task", "path", "excluded"),
]


def report_folder(
    folder: epath.Path, beside: epath.Path | None = None, latex: bool = False
) -> tuple[str, list[str]]:
    """Write the tables, the CSV files and the figures of all runs in a folder.

    Args:
        folder: All runs in it and below are read.
        beside: A CSV file of published accuracies to compare with.
        latex: Whether to write report.tex too.

    Returns:
        The Markdown text and the names of the files.
    """
    frame = results(folder)
    # A seed counts once, however often it was evaluated.
    counted = frame[frame.excluded == ""].drop_duplicates([*CELL, "seed"], keep="last")
    runs = counted.assign(accuracy=100 * counted.accuracy)  # tables are in percent
    panels, halves = curves(runs), base_and_new(runs)
    tables = [
        *few_shot_tables(runs),
        *gain_tables(runs),
        *base_to_new_tables(halves),
        *transfer_tables(runs),
    ]
    notes = [] if tables else [f"No run here has a counterpart in a table; see {RUNS_FILE}."]
    if beside:
        compared, missing = compare(runs, read_published(beside, set(runs.dataset)))
        tables += compared
        notes += [missing] if missing else []
    if excluded := [reason for reason in frame.excluded.unique() if reason]:
        notes.append("\n".join(["Note:\n", *(f"- {reason}" for reason in excluded)]))
    text = "\n\n".join([*(table.markdown() for table in tables), *notes]) + "\n"
    contents: dict[str, str | bytes] = {
        TABLE_FILE: text,
        CSV_FILE: csv_of(by_cell(counted), DIGITS),
        RUNS_FILE: csv_of(frame[RUN_COLUMNS], DIGITS),
        CLASSES_FILE: csv_of(by_class(counted), DIGITS),
    }
    if latex:
        contents[LATEX_FILE] = "\n".join(table.latex() for table in tables)
    if panels:
        contents[FIGURE_FILE] = draw_curves(panels)
    if len(halves):
        contents[HALVES_FILE] = draw_halves(halves)
    for name, content in contents.items():
        write_whole(folder / name, content)
    return text, [*contents]


def by_cell(runs: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each cell of a table: the mean and the deviation over its seeds."""
    cells = runs.groupby(CELL, sort=False, as_index=False)
    return cells.agg(
        images=("n", "first"),
        seeds=("seed", "count"),
        accuracy_mean=("accuracy", "mean"),
        accuracy_std=("accuracy", population_std),
        macro_f1_mean=("macro_f1", "mean"),
        macro_f1_std=("macro_f1", population_std),
    )


def by_class(runs: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each class of each run."""
    rows = [
        {**run, "class": name, "images": one["n"], "accuracy": one["accuracy"], "f1": one["f1"]}
        for run in runs[[*CELL, "seed", "path"]].to_dict("records")
        for name, one in read_result(as_path(run["path"]) / RESULTS_FILE)["per_class"].items()
    ]
    columns = [*CELL, "seed", "class", "images", "accuracy", "f1"]
    return pd.DataFrame(rows, columns=columns)


def population_std(values: pd.Series) -> float:
    """Return the standard deviation of the population, as in published tables."""
    return values.std(ddof=0)


def in_domain(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs tested on all classes of their training dataset.

    Zero-shot, which has no shots, is repeated for each number of shots.
    """
    runs = runs[runs.classes == "all"]
    trained = runs[(runs.trained_on == runs.dataset) & (runs.trained_classes == "all")]
    zero_shot = runs[runs.method == ZERO_SHOT]
    shots = sorted(trained.shots.unique(), key=shots_rank) or [0]
    return pd.concat([*(zero_shot.assign(shots=number) for number in shots), trained])


def away(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs tested on all classes of a dataset that they were not trained on."""
    return runs[
        (runs.trained_on != "") & (runs.classes == "all") & (runs.trained_on != runs.dataset)
    ]


def few_shot_tables(runs: pd.DataFrame) -> list[Table]:
    """Return tables of methods × shots: one for each dataset, and their average."""
    own = in_domain(runs)
    # The targets of a transfer are in the table of their source.
    targets = {*away(runs).dataset} - {*own.dataset[own.method != ZERO_SHOT]}
    own = own[~own.dataset.isin(targets)]
    cells, tables = summarise(own, ["dataset", "method", "shots"]), []
    for dataset, here in own.groupby("dataset", sort=False):
        words = f"Accuracy (%) on {here.n.iloc[0]:,} test images"
        columns = shots_columns(own.shots)
        tables.append(table(dataset, words, cells.xs(dataset), columns, more=about(here)))
    average = average_over(cells, own.dataset.unique())
    if len(tables) > 1 and len(average):
        title = f"Average over {len(tables)} datasets"
        words = "Mean of their accuracies (%), where all have run"
        tables.append(table(title, words, average, shots_columns(own.shots), "over"))
    return tables


def about(runs: pd.DataFrame) -> str:
    """Return sentences about a dataset's table: its version, and how settings were chosen."""
    words, tasks = "", set(runs.task)
    if len(tasks) == 1 and "" not in tasks:
        words += f" Task {tasks.pop()}."
    for by, chosen in runs[runs.selection != "none"].groupby("selection", sort=False):
        names = ", ".join(ROWS[method].label for method in chosen.method.unique())
        words += f" Settings chosen by {by}: {names}."
    if set(runs.dataset) <= {*PAPER_DATASETS, *SHIFTED_IMAGENETS}:
        words += " The images are public: CLIP may have seen them in its own training."
    return words


def gain_tables(runs: pd.DataFrame) -> list[Table]:
    """Return tables of methods × shots: the gain over zero-shot and over VPT, for each dataset.

    A gain is the mean difference between runs of one seed. Its standard error needs two seeds.
    """
    tables = []
    for dataset, own in in_domain(runs).groupby("dataset", sort=False):
        for reference in REFERENCES:
            keys = ["shots"] if reference == ZERO_SHOT else ["shots", "seed"]
            theirs = own.loc[own.method == reference, [*keys, "accuracy"]]
            others = own[~own.method.isin([ZERO_SHOT, reference])]
            both = others.merge(theirs, on=keys, suffixes=("", "_of_reference"))
            both["gain"] = both.accuracy - both.accuracy_of_reference
            gains = both.groupby(["method", "shots"]).gain.agg(
                mean="mean", spread="sem", seeds="count"
            )
            gains = gains[gains.seeds > 1]
            if gains.empty:
                continue
            title = f"{dataset}: gain over {ROWS[reference].label}"
            columns = shots_columns(gains.index.get_level_values("shots"))
            spread = "mean ± standard error of the differences of the same"
            tables.append(table(title, "Points of accuracy", gains, columns, spread, sign="+"))
    return tables


def base_to_new_tables(halves: pd.DataFrame) -> list[Table]:
    """Return a table for each dataset of the cells of `base_and_new`."""
    columns = {name: name for name in ("base", "new", HARMONIC)}
    words = "Trained on the base half of the classes, accuracy (%)"
    return [
        table(f"{dataset}: base to new classes", words, halves.xs(dataset), columns)
        for dataset in halves.index.unique("dataset")
    ]


def base_and_new(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the cells of base classes, of new classes and of their harmonic means, by dataset.

    A harmonic mean is that of the mean accuracies, over the seeds that have both. A method that has
    run on one half only has no cell.
    """
    zero_shot, here = runs.method == ZERO_SHOT, runs.trained_on == runs.dataset
    halves = runs[(runs.classes != "all") & (zero_shot | here & (runs.trained_classes == "base"))]
    place = ["dataset", "method", "shots"]
    by_seed = halves.pivot(index=[*place, "seed"], columns="classes", values="accuracy")
    by_seed = by_seed.reindex(columns=["base", "new"])
    complete = by_seed.groupby(place).transform("count").all(axis=1)
    cells = summarise(halves, [*place, "classes"])
    rows = by_seed.index[complete].droplevel("seed")
    cells = cells[cells.index.droplevel("classes").isin(rows)]
    both = by_seed.dropna().groupby(place)
    harmonic = pd.DataFrame({"seeds": both.size()})
    harmonic["mean"] = [harmonic_mean(*means) for means in both.mean().values]
    return add_column(cells, "classes", HARMONIC, harmonic)


def transfer_tables(runs: pd.DataFrame) -> list[Table]:
    """Return a table for each dataset whose prompts were tested on other datasets."""
    tables = []
    for (source, half), there in away(runs).groupby(["trained_on", "trained_classes"], sort=False):
        targets = [*there.dataset.unique()]
        trained = (runs.trained_on == source) & (runs.trained_classes == half)
        own = runs[
            (runs.classes == "all")
            & runs.dataset.isin([source, *targets])
            & (trained | (runs.method == ZERO_SHOT))
        ]
        # A method that was not tested on a target has no row.
        on_target = own.dataset.isin(targets)
        own = own[on_target.groupby([own.method, own.shots]).transform("any")]
        cells = summarise(own, ["method", "shots", "dataset"])
        columns = {source: f"{source} (source)"} | {name: name for name in targets}
        if len(targets) > 1:
            cells = add_column(cells, "dataset", AVERAGE, average_over(cells, targets))
            columns[AVERAGE] = AVERAGE
        name = f"{source} ({half} classes)" if half in ("base", "new") else source
        words = f"Prompts trained on {name}, accuracy (%)"
        tables.append(table(f"From {name} to other datasets", words, cells, columns))
    return tables


def curves(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return accuracy against shots by title: the average over datasets, then each dataset."""
    own = in_domain(runs)
    own = own[own.shots > 0]
    datasets = [*own.dataset[own.method != ZERO_SHOT].unique()]
    cells = summarise(own, ["dataset", "method", "shots"])
    average = average_over(cells, datasets)
    panels = {}
    if len(datasets) > 1 and {*average.index.get_level_values("method")} - {ZERO_SHOT}:
        panels[f"average over {len(datasets)} datasets"] = average
    return panels | {dataset: cells.xs(dataset) for dataset in datasets}


def summarise(runs: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return the mean over the seeds of each cell, its spread (NaN for one seed) and the seeds.

    by: columns, one of them the method.
    """
    cells = runs.groupby(by, sort=False).accuracy.agg(
        mean="mean", spread=population_std, seeds="count"
    )
    cells["spread"] = cells.spread.where(cells.seeds > 1)
    return cells


def average_over(cells: pd.DataFrame, datasets: Sequence[str]) -> pd.DataFrame:
    """Average the cells of `summarise` over datasets, if all of them have run."""
    means = cells["mean"].unstack("dataset").reindex(columns=datasets).dropna()
    seeds = cells.seeds.unstack("dataset").reindex(means.index)[[*datasets]].astype(int)
    least, most = seeds.min(axis=1).astype(str), seeds.max(axis=1).astype(str)
    return pd.DataFrame(
        {"mean": means.mean(axis=1), "seeds": least.where(least == most, least + " to " + most)}
    )


def add_column(cells: pd.DataFrame, level: str, name: str, more: pd.DataFrame) -> pd.DataFrame:
    """Append cells without a `level` of the index, which becomes `name`."""
    more = pd.concat({name: more}, names=[level])
    return pd.concat([cells, more.reorder_levels(cells.index.names)])


def shots_columns(shots: Iterable[int]) -> dict[int, str]:
    """Return the headers of columns of shots, in their order."""
    return {number: shots_in_words(number) for number in sorted({*shots}, key=shots_rank)}


def table(
    title: str,
    words: str,
    cells: pd.DataFrame,
    columns: Mapping[Any, str],
    spread: str = "mean ± standard deviation of",
    more: str = "",
    sign: str = "",
) -> Table:
    """Return a table of methods, and perhaps shots, × columns.

    Args:
        title: Its title.
        words: What the numbers are. The number of seeds is appended; if it differs, "n seeds" is,
            and each cell shows its n.
        cells: mean, perhaps spread, and seeds, by method, perhaps shots, and what the columns are.
        columns: The header of each column.
        spread: Words before the number of seeds.
        more: Sentences that follow.
        sign: "+" to show the sign of positive numbers.
    """
    text = cells["mean"].map(f"{{:{sign}.1f}}".format)
    if "spread" in cells:
        text = text.where(cells.spread.isna(), text + cells.spread.map(" ± {:.1f}".format))
    # Zero-shot CLIP has no seeds.
    seeds = cells.seeds[cells.index.get_level_values("method") != ZERO_SHOT].astype(str)
    numbers = {*seeds}
    if numbers == {"1"}:
        words += ", one seed"
    elif numbers:
        words += f", {spread} {seeds.iloc[0] if len(numbers) == 1 else 'n'} seeds"
    if len(numbers) > 1:
        text = text + (" (n=" + seeds + ")").reindex(text.index).fillna("")
    shown = text.unstack(fill_value="").reindex(columns=list(columns), fill_value="")
    shown = shown.rename(columns=columns)
    ranks = {"method": list(ROWS).index, "shots": shots_rank}
    shown = shown.sort_index(key=lambda level: level.map(ranks[level.name])).reset_index()
    shown["method"] = shown.method.map(lambda method: ROWS[method].label)
    if "shots" in shown:
        shown["shots"] = shown.shots.map(lambda shots: {0: "", -1: "all"}.get(shots, str(shots)))
    return Table(title, f"{words}.{more}", shown)
