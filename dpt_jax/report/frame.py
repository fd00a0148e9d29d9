"""Results of runs as a pandas DataFrame."""

import os
from typing import Any

import pandas as pd

from dpt_jax.data.catalogue import PAPER_DATASETS
from dpt_jax.errors import UserError
from dpt_jax.evaluation.results import (
    RESULTS_FILE,
    Results,
    outdated,
    read_result,
)
from dpt_jax.io import as_path, find_files
from dpt_jax.methods import ROWS, ZERO_SHOT
from dpt_jax.training.checkpoints import newest
from dpt_jax.training.record import unfinished
from dpt_jax.training.workdir import source_of

# Runs that agree in these differ only in their seed: they are averaged into one cell of a table.
CELL = ["method", "trained_on", "trained_classes", "shots", "dataset", "classes"]
# Runs of one cell, and those of one seed, must also agree in these columns.
SAME_IN_CELL = {
    "n": "the number of test images",
    "test_list": "their test images",
    "init_from": "init_from",
    "selection": "the images that settings were chosen on",
    "task": "the version of their task",
}
SAME_IN_SEED = {"train_list": "their training images", "prompts": "their prompts"}
UNKNOWN = "unknown"  # the training of a checkpoint without a known dataset
DIGEST = 6  # characters of a digest that are shown


def results(runs: str | os.PathLike[str]) -> pd.DataFrame:
    """Read the results of all runs in a folder.

    Args:
        runs: A folder of runs, or one workdir.

    Returns:
        One row per results.json: method, selection, task, dataset, classes, trained_on,
        trained_classes, shots, seed, accuracy, macro_f1 and zero_shot_accuracy (0 to 1), ece, n,
        unreadable, path, digests of their sources, and the settings by key. `excluded`
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
    settings = [one["of"]["settings"] for one in read]
    # Of dtype object, or integers become floats if another method does not have the key.
    frame = frame.join(pd.DataFrame(settings, index=frame.index, dtype=object))
    _exclude_mixed(frame, sorted({key for one in settings for key in one}))
    # The paper's datasets, without digests, in the order of its tables, and then the others.
    places = {name: place for place, name in enumerate(PAPER_DATASETS)}
    datasets = sorted(
        frame.dataset.unique(),
        key=lambda name: places.get(name.partition(" (")[0], len(places)),
    )
    ranks = {"dataset": datasets.index, "method": list(ROWS).index, "shots": shots_rank}
    by = ["dataset", "method", "shots", "seed"]
    return frame.sort_values(
        by, key=lambda column: column.map(ranks.get(column.name, int)), kind="stable",
        ignore_index=True,
    )  # fmt: skip


def shots_rank(shots: int) -> float:
    """Return a sort key that puts -1, all images, last."""
    return shots if shots >= 0 else float("inf")


def _row(one: Results, workdir: Any) -> dict[str, Any]:
    """Return one row, without the settings."""
    of, zero_shot = one["of"], one["method"] == ZERO_SHOT
    held = None if zero_shot else newest(source_of(workdir))
    unknown = "" if zero_shot else UNKNOWN
    trained_on = one["trained_on"] or {"dataset": unknown, "classes": unknown}
    trained_data = of["trained_on"] or {"name": trained_on["dataset"], "digest": ""}
    excluded = ""
    if why := outdated(one, workdir):
        excluded = f"{why}: left out; evaluate again with --mode=eval."
    elif progress := unfinished(of):
        excluded = f"{workdir} is from {progress}: left out; finish its training."
    scores = ("accuracy", "balanced_accuracy", "macro_f1", "zero_shot_accuracy")
    about = ("parameters", "n", "selection", "task", "unreadable")
    digests = ("backbone", "prompts", "train_list", "test_list", "init_from")
    return {
        "method": one["method"],
        "dataset": of["data"]["name"],
        "classes": one["classes"],
        "trained_on": trained_data["name"],
        "trained_classes": trained_on["classes"],
        # Zero-shot CLIP uses no sample.
        "shots": 0 if zero_shot else one["shots"],
        "seed": 0 if zero_shot else one["seed"],
        **{key: one[key] for key in scores},
        "ece": one["calibration"]["ece"],
        # Not in results.json, which is bit-identical for a resumed run.
        "seconds": held.meta.get("seconds") if held else None,
        **{key: one[key] for key in about},
        "path": str(workdir),
        "excluded": excluded,
        "data": of["data"]["digest"],
        "trained_data": trained_data["digest"],
        **{key: of[key] for key in digests},
    }


def _name_datasets(frame: pd.DataFrame) -> None:
    """Add a digest to names that several datasets share, or one dataset seen by several CLIPs."""
    pairs = {"dataset": "data", "trained_on": "trained_data"}
    used = frame[frame.excluded == ""]
    seen = pd.concat(
        used[[name, digest, "backbone"]].set_axis(["name", "data", "CLIP"], axis=1)
        for name, digest in pairs.items()
    )
    several = seen[seen.data != ""].groupby("name").nunique() > 1

    def named(name: str, data: str, clip: str) -> str:
        if name not in several.index or not data:
            return name
        shown = [data[:DIGEST]] if several.data[name] else []
        shown += [f"CLIP {clip[:DIGEST]}"] if several.CLIP[name] else []
        return f"{name} ({', '.join(shown)})" if shown else name

    for name, digest in pairs.items():
        columns = (frame[name], frame[digest], frame.backbone)
        frame[name] = [named(*row) for row in zip(*columns, strict=True)]


def _exclude_mixed(frame: pd.DataFrame, settings: list[str]) -> None:
    """Exclude the cells whose runs differ in more than their seed."""
    same = SAME_IN_CELL | {key: key for key in settings}
    for cell, runs in frame[frame.excluded == ""].groupby(CELL, sort=False):
        why = _difference(runs, same)
        for _, of_seed in runs.groupby("seed"):
            why = why or _difference(of_seed, SAME_IN_SEED, " of one seed")
        if why:
            frame.loc[runs.index, "excluded"] = (
                f"{why}, so they are not seeds of one result: all {len(runs)} runs of {cell[0]} on "
                f"{cell[4]} like these are left out; report on them separately."
            )


def _difference(runs: pd.DataFrame, columns: dict[str, str], which: str = "") -> str:
    """Name two runs and the first column in which they differ; "" if there is none."""
    for column, meaning in columns.items():
        values = runs[column].where(runs[column].notna(), "none").map(str)
        for other in runs.index[values != values.iloc[0]]:
            words = f"{runs.path.iloc[0]} and {runs.path[other]}{which} differ in {meaning}"
            # A digest tells a reader nothing.
            is_digest = column in ("test_list", *SAME_IN_SEED)
            return words if is_digest else f"{words} ({values.iloc[0]} and {values[other]})"
    return ""
