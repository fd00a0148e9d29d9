"""Which results belong together: what is outdated or mixed is left out by name."""

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from dpt_jax.config import flat
from dpt_jax.configs import common
from dpt_jax.errors import UserError
from dpt_jax.evaluation.provenance import outdated, unfinished
from dpt_jax.evaluation.results import RESULTS_FILE, Results, read_result
from dpt_jax.io import find_files
from dpt_jax.report.cells import Cell, cell_of

WORKDIR = "workdir"  # under which a result says where it was read
SHORT = 6  # characters of a digest


def read_results(folder: epath.Path) -> list[Results]:
    """Return every results.json below a folder, in the order of their paths, with its WORKDIR.

    Raise UserError where there is none.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not a folder: give the one that holds the runs, such as runs/."
        )
    files = find_files(folder, RESULTS_FILE)
    if not files:
        raise UserError(
            f"{folder} holds no finished run (no {RESULTS_FILE} in it or below): train first."
        )
    return [{**read_result(file), WORKDIR: file.parent} for file in files]


def select(results: Sequence[Results]) -> tuple[list[Results], list[str]]:
    """Return the results that tables may show, by datasets' distinct names, and what to know.

    Left out by name are results whose prompts are no longer those of the run, or of a training
    that had not ended, and all of a cell whose runs differ in more than their seed.
    """
    current, notes = [], []
    for one in results:
        if why := outdated(one, one[WORKDIR]):
            notes.append(f"{why}: left out; evaluate again, with --mode=eval.")
        elif far := unfinished(one):
            notes.append(f"{one[WORKDIR]} is of {far}: left out; train it to the end.")
        else:
            current.append(one)
    if older := [one for one in current if not one.get("of")]:
        notes.append(
            f"{older[0][WORKDIR]}{f' and {len(older) - 1} more' if len(older) > 1 else ''}: an "
            "older version wrote these results, which do not say what they are of; evaluate "
            "again, with --mode=eval."
        )
    by_cell: dict[Cell, list[Results]] = collections.defaultdict(list)
    for one in with_distinct_names(current):
        by_cell[cell_of(one)].append(one)
    kept = []
    for cell, runs in by_cell.items():
        if mixed := _mixed(cell, runs):
            notes.append(mixed)
        else:
            kept += runs
    return kept, notes


def with_distinct_names(results: Iterable[Results]) -> list[Results]:
    """Return the results with a name for each dataset that no other dataset or backbone has.

    A folder is called by its own name. Where several datasets have one name, the first characters
    of their digests are added; where several backbones saw one, those of the backbone's.
    """
    results = list(results)
    named = [one["of"] for one in results if one.get("of")]
    data, backbones = collections.defaultdict(set), collections.defaultdict(set)
    for of in named:
        for one in filter(None, (of["data"], of["trained_on"])):
            data[one["name"]].add(one["digest"])
            backbones[one["name"]].add(of["backbone"])

    def name(dataset: Mapping[str, str], backbone: str) -> str:
        own = dataset["name"]
        more = [dataset["digest"][:SHORT]] if len(data[own]) > 1 else []
        others = len(backbones[own]) > 1
        more += [f"CLIP {backbone[:SHORT]}"] if others else []
        return f"{own} ({', '.join(more)})" if more else own

    def renamed(one: Results) -> Results:
        if not (of := one.get("of")):
            return one
        changed: dict[str, Any] = {**one, "dataset": name(of["data"], of["backbone"])}
        if one["trained_on"] and of["trained_on"]:
            trained = name(of["trained_on"], of["backbone"])
            changed["trained_on"] = {**one["trained_on"], "dataset": trained}
        return changed

    return [renamed(one) for one in results]


def _mixed(cell: Cell, runs: Sequence[Results]) -> str:
    """Return in words what runs of a cell differ in besides their seed, "" where in nothing."""
    of_seed: dict[int, Results] = {}
    for one in runs:
        # With any run, and with one of the same seed, which has more to be the same.
        for other in (runs[0], of_seed.setdefault(one["seed"], one)):
            if difference := _difference(other, one):
                return (
                    f"{other[WORKDIR]} and {one[WORKDIR]} differ in {difference}, so they are not "
                    f"seeds of one result: all {len(runs)} runs of {cell.method} on "
                    f"{cell.dataset} like these are left out; report on them apart."
                )
    return ""


def _difference(a: Results, b: Results) -> str:
    if a["n"] != b["n"]:
        return f"the number of test images ({a['n']:,} and {b['n']:,})"
    of_a, of_b = a.get("of"), b.get("of")
    if not (of_a and of_b):
        return ""
    # Of results older than a key it is the default, by which they were made.
    known = flat(common.get_config().to_dict())
    default = {key: known[key] for key in {*of_a["settings"], *of_b["settings"]} & {*known}}
    here, there = default | of_a["settings"], default | of_b["settings"]
    for key in sorted({*here, *there}):
        if here.get(key) != there.get(key):
            return f"{key} ({here.get(key)} and {there.get(key)})"
    if bool(of_a.get("init_from")) != bool(of_b.get("init_from")):
        return "init_from: one of them started from other prompts"
    if of_a["test_list"] != of_b["test_list"]:
        return "their test images"
    for key, what in (("train_list", "training images"), ("prompts", "prompts")):
        if a["seed"] == b["seed"] and of_a[key] != of_b[key]:
            return f"their {what}, though not in their seed"
    return ""
