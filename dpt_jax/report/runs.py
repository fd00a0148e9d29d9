"""The report on all runs of a folder: tables, CSV files and figures."""

import pandas as pd
from etils import epath

from dpt_jax.data.catalogue import PAPER_DATASETS, SHIFTED_IMAGENETS
from dpt_jax.io import write_whole
from dpt_jax.methods import ROWS, ZERO_SHOT
from dpt_jax.report.figures import draw_curves, draw_halves
from dpt_jax.report.frame import (
    CELL,
    HALVES,
    HARMONIC,
    average,
    in_order,
    results,
    summarise,
    trained_there,
    with_harmonic_means,
)
from dpt_jax.report.one_run import CSV_FILE, FIGURE_FILE, TABLE_FILE
from dpt_jax.report.published import compare, read_published
from dpt_jax.report.tables import Table, csv_of, table

REFERENCES = (ZERO_SHOT, "vpt")  # the methods that gains are measured against
AVERAGE = "average of targets"
RUNS_FILE, CLASSES_FILE = "runs.csv", "classes.csv"
LATEX_FILE, HALVES_FILE = "report.tex", "base_to_new.png"
DIGITS = "%.5f"  # of accuracies and the like in CSV files, which are from 0 to 1
CELL_COLUMNS = [*CELL, "images", "seeds", "accuracy_mean", "accuracy_std", "macro_f1_mean",
                "macro_f1_std"]  # fmt: skip
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
    few_shot, halves = few_shot_runs(runs), base_and_new(runs)
    tables = [
        *few_shot_tables(few_shot),
        *gain_tables(few_shot),
        *base_to_new_tables(halves),
        *transfer_tables(runs),
    ]
    notes = [] if tables else [f"No run here has a counterpart in a table; see {RUNS_FILE}."]
    if beside:
        compared, missing = compare(runs, read_published(beside))
        tables += compared
        notes += [missing] if missing else []
    if excluded := [reason for reason in frame.excluded.unique() if reason]:
        notes.append("\n".join(["Note:\n", *(f"- {reason}" for reason in excluded)]))
    text = "\n\n".join([*(one.markdown() for one in tables), *notes]) + "\n"
    contents: dict[str, str | bytes] = {
        TABLE_FILE: text,
        CSV_FILE: csv_of(summarise(counted)[CELL_COLUMNS], DIGITS),
        RUNS_FILE: csv_of(frame[RUN_COLUMNS], DIGITS),
        CLASSES_FILE: csv_of(by_class(counted), DIGITS),
    }
    if latex:
        contents[LATEX_FILE] = "\n".join(one.latex() for one in tables)
    if panels := curves(few_shot):
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

    Zero-shot, which has no shots, is repeated for each number of shots. The targets of a transfer
    are left out unless they have runs of their own.
    """
    own = trained_there(runs[runs.classes == "all"])
    is_zero_shot = own.method == ZERO_SHOT
    zero_shot, trained = own[is_zero_shot], own[~is_zero_shot]
    targets = {*transferred(runs).dataset} - {*trained.dataset}
    zero_shot = zero_shot[~zero_shot.dataset.isin(targets)]
    shots = trained.shots.unique() if len(trained) else [0]
    repeated = pd.concat([*(zero_shot.assign(shots=number) for number in shots), trained])
    return in_order(repeated, ["dataset", "method", "shots"])


def transferred(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs tested on all classes of a dataset that they were not trained on."""
    elsewhere = (runs.trained_on != "") & (runs.trained_on != runs.dataset)
    return runs[elsewhere & (runs.classes == "all")]


def few_shot_tables(runs: pd.DataFrame) -> list[Table]:
    """Return tables of methods × shots: one for each dataset, and their average."""
    cells = summarise(runs)
    tables = [
        table(dataset, f"Accuracy (%) on {own.images.iloc[0]:,} test images", own, more=about(own))
        for dataset, own in cells.groupby("dataset", sort=False)
    ]
    averages = average(cells, ["method", "shots"], len(tables))
    if len(tables) > 1 and len(averages):
        title = f"Average over {len(tables)} datasets"
        words = "Mean of their accuracies (%), where all have run"
        tables.append(table(title, words, averages, spread="over"))
    return tables


def about(cells: pd.DataFrame) -> str:
    """Return sentences about a dataset's table: its version, and how settings were chosen."""
    words, tasks = "", {*cells.task}
    if len(tasks) == 1 and "" not in tasks:
        words += f" Task {tasks.pop()}."
    for by, chosen in cells[cells.selection != "none"].groupby("selection", sort=False):
        names = ", ".join(ROWS[method].label for method in chosen.method.unique())
        words += f" Settings chosen by {by}: {names}."
    if {*cells.dataset} <= {*PAPER_DATASETS, *SHIFTED_IMAGENETS}:
        words += " The images are public: CLIP may have seen them in its own training."
    return words


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
    halves = with_harmonic_means(halves, ["method", "shots", "dataset"])
    cells = summarise(halves)
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
    tables = []
    sources = transferred(runs).groupby(["trained_on", "trained_classes"], sort=False)
    for (source, half), there in sources:
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
        cells = summarise(own)
        columns, in_source = [f"{source} (source)", *targets], cells.dataset == source
        if len(targets) > 1:
            averages = average(cells[~in_source], ["method", "shots"], len(targets))
            cells = pd.concat([cells, averages.assign(dataset=AVERAGE)], ignore_index=True)
            columns.append(AVERAGE)
        cells["dataset"] = cells.dataset.replace({source: columns[0]})
        name = f"{source} ({half} classes)" if half in HALVES else source
        words = f"Prompts trained on {name}, accuracy (%)"
        tables.append(table(f"From {name} to other datasets", words, cells, "dataset", columns))
    return tables


def curves(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return cells of few-shot runs by title: the average over datasets, then each dataset."""
    cells = summarise(runs[runs.shots > 0])
    datasets = cells.dataset[cells.method != ZERO_SHOT].unique()
    averages = average(cells[cells.dataset.isin(datasets)], ["method", "shots"], len(datasets))
    panels = {}
    if len(datasets) > 1 and {*averages.method} - {ZERO_SHOT}:
        panels[f"average over {len(datasets)} datasets"] = averages
    return panels | {dataset: cells[cells.dataset == dataset] for dataset in datasets}
