"""Reports: results as a pandas DataFrame, a row for each run, and the tables that show them.

`runs` makes tables and figures of many runs, `one_run` those of one.
"""

import os
from typing import Any

import numpy as np
import pandas as pd
from etils import epath

from dpt_jax.data.catalogue import PAPER_DATASETS
from dpt_jax.errors import UserError
from dpt_jax.evaluation.results import RESULTS_FILE, Results, outdated, read_result
from dpt_jax.io import as_path, find_files
from dpt_jax.methods import ROWS, ZERO_SHOT
from dpt_jax.training.saved import unfinished

# Runs that agree in these differ only in their seed: they are averaged into one cell of a table.
CELL = ["method", "trained_on", "trained_classes", "shots", "dataset", "classes"]
# Runs of one cell must also agree in SAME_IN_CELL and in all settings, and those of one seed in
# SAME_IN_SEED.
SAME_IN_CELL = ["n", "test_list", "init_from", "selection", "task"]
SAME_IN_SEED = ["train_list", "prompts"]
HALVES, HARMONIC = ("base", "new"), "harmonic mean"
DIGEST = 6  # characters of a digest that are shown
# First characters that make a spreadsheet read a cell as a formula, full-width forms included.
FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def results(runs: str | os.PathLike[str]) -> pd.DataFrame:
    """Read the results of all runs in a folder.

    Args:
        runs: A folder of runs, or one workdir.

    Returns:
        One row per results.json: method, selection, task, dataset, classes, trained_on,
        trained_classes, shots, seed, accuracy, macro_f1 and zero_shot_accuracy (0 to 1), ece, n,
        unreadable, per_class, path, digests of their sources, and the settings by key. `excluded`
        is the reason why a report leaves the run out, and "" if it does not.

    Raises:
        UserError: There is no results.json, or one is damaged.
    """
    folder = as_path(runs)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give the folder of the runs, such as runs/.")
    files = find_files(folder, RESULTS_FILE)
    if not files:
        raise UserError(f"{folder} has no finished run (no {RESULTS_FILE} in or below it).")
    read = [read_result(file) for file in files]
    frame = pd.DataFrame([_row(one, file.parent) for one, file in zip(read, files, strict=True)])
    frame["parameters"] = frame.parameters.astype("Int64")  # or a missing one makes them floats
    _name_datasets(frame)
    # Of dtype object, or integers become floats if another method does not have the key.
    settings = pd.DataFrame([one["of"]["settings"] for one in read], dtype=object)
    frame = frame.join(settings)
    _exclude_mixed(frame, [*SAME_IN_CELL, *sorted(settings)])
    return in_order(frame, ["dataset", "method", "shots", "seed"])


def in_order(frame: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Sort rows: the paper's datasets first, methods as in `ROWS`, all images after all shots."""
    papers = {name: f"{place:02}" for place, name in enumerate(PAPER_DATASETS)}
    ranks = {
        # The name may have a digest.
        "dataset": lambda name: papers.get(name.partition(" (")[0], "~") + name,
        "method": [*ROWS].index,
        "shots": lambda shots: shots if shots >= 0 else np.inf,
        "classes": ["all", *HALVES, HARMONIC].index,
    }
    return frame.sort_values(
        by, key=lambda column: column.map(ranks.get(column.name, int)), kind="stable",
        ignore_index=True,
    )  # fmt: skip


def _row(one: Results, workdir: epath.Path) -> dict[str, Any]:
    """Return one row, without the settings."""
    of, zero_shot = one["of"], one["method"] == ZERO_SHOT
    why, newest = outdated(one, workdir)
    unknown = "" if zero_shot else "unknown"  # a checkpoint need not say what it was trained on
    trained = one["trained_on"] or {"dataset": unknown, "classes": unknown}
    trained_data = of["trained_on"] or {"name": trained["dataset"], "digest": ""}
    excluded = ""
    if why:
        excluded = f"{why}: left out; evaluate again with --mode=eval."
    elif progress := unfinished(of):
        excluded = f"{workdir} is from {progress}: left out; finish its training."
    scores = ("accuracy", "balanced_accuracy", "macro_f1", "zero_shot_accuracy", "per_class")
    about = ("classes", "parameters", "n", "selection", "task", "unreadable")
    digests = ("backbone", "prompts", "train_list", "test_list", "init_from")
    return {
        "method": one["method"],
        "dataset": of["data"]["name"],
        "name": of["data"]["name"],  # without the digest of `_name_datasets`
        "trained_on": trained_data["name"],
        "trained_classes": trained["classes"],
        # Zero-shot CLIP uses no sample.
        "shots": 0 if zero_shot else one["shots"],
        "seed": 0 if zero_shot else one["seed"],
        **{key: one[key] for key in (*scores, *about)},
        "ece": one["calibration"]["ece"],
        # Not in results.json, which is bit-identical for a resumed run.
        "seconds": newest.meta.get("seconds") if newest else None,
        "path": str(workdir).encode(errors="backslashreplace").decode(),  # it need not be Unicode
        "excluded": excluded,
        "data": of["data"]["digest"],
        "trained_data": trained_data["digest"],
        **{key: of[key] for key in digests},
        "test_files": of.get("test_files", ""),
    }


def _name_datasets(frame: pd.DataFrame) -> None:
    """Add a digest to names that several datasets share, or one dataset seen by several CLIPs."""
    columns = {"dataset": "data", "trained_on": "trained_data"}
    keys = {
        name: [*frame[[name, digest, "backbone"]].itertuples(index=False, name=None)]
        for name, digest in columns.items()
    }
    used = frame.index[frame.excluded == ""]
    known = {own[i] for own in keys.values() for i in used if own[i][1]}

    def label(name: str, data: str, backbone: str) -> str:
        alike = [other for other in known if data and other[0] == name]
        shown = [data[:DIGEST]] if len({other[1] for other in alike}) > 1 else []
        shown += [f"CLIP {backbone[:DIGEST]}"] if len({other[2] for other in alike}) > 1 else []
        return f"{name} ({', '.join(shown)})" if shown else name

    for name, own in keys.items():
        frame[name] = [label(*key) for key in own]


def _exclude_mixed(frame: pd.DataFrame, same: list[str]) -> None:
    """Exclude the cells whose runs differ in more than their seed."""
    for (method, *_, dataset, _), runs in frame[frame.excluded == ""].groupby(CELL, sort=False):
        # The sizes of files in a bucket are unknown.
        why = _difference(runs, same) or _difference(runs[runs.test_files != ""], ["test_files"])
        for _, of_seed in runs.groupby("seed"):
            why = why or _difference(of_seed, SAME_IN_SEED, ", of one seed,")
        if why:
            frame.loc[runs.index, "excluded"] = (
                f"{why}, so they are not seeds of one result: all {len(runs)} runs of {method} on "
                f"{dataset} like these are left out; report on them separately."
            )


def _difference(runs: pd.DataFrame, columns: list[str], which: str = "") -> str:
    """Name two runs and the first column in which they differ; "" if there is none."""
    for column in columns:
        values = runs[column].map(str)
        if len(two := values.drop_duplicates().index[:2]) > 1:
            paths, shown = " and ".join(runs.path[two]), " and ".join(values[two])
            return f"{paths}{which} differ in {column} ({shown})"
    return ""


def markdown(cells: pd.DataFrame) -> str:
    """Format a Markdown table with aligned columns."""

    def escaped(cell: str) -> str:
        return " ".join(cell.split()).replace("|", "\\|")

    cells = cells.map(escaped).rename(columns=escaped)
    return cells.to_markdown(index=False, tablefmt="github", disable_numparse=True)


def csv_of(frame: pd.DataFrame, float_format: str | None = None) -> bytes:
    """Return a CSV file that is safe in a spreadsheet."""
    texts = frame.select_dtypes(exclude="number").map(inert)
    content = frame.assign(**texts).to_csv(index=False, float_format=float_format)
    return content.encode(errors="backslashreplace")


def inert(cell: Any) -> Any:
    """Put an apostrophe before text that a spreadsheet would run as a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULAS) else cell
