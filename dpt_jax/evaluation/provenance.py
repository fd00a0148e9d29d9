"""What results are of, and whether they still are: prompts, CLIP, images and settings."""

import contextlib
import json
import zipfile
import zlib
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from dpt_jax.config import CONFIG_FILE, read_config
from dpt_jax.errors import UserError
from dpt_jax.evaluation.results import PREDICTIONS_FILE, RESULTS_FILE, Results, read_result
from dpt_jax.io import as_path
from dpt_jax.methods import ZERO_SHOT
from dpt_jax.training import initial_prompts, prompt_file
from dpt_jax.training.checkpoints import FOLDER, Saved, newest
from dpt_jax.training.digests import digest_of_json
from dpt_jax.training.fingerprint import fingerprint, name_of_data, training_meta
from dpt_jax.training.setup import Experiment


def describe(experiment: Experiment, saved: Saved) -> dict[str, Any]:
    """Return the labels of an evaluation's results, the origin of the prompts under "of".

    What is about the training comes from its record, see training.fingerprint, and only what is
    about the test from the settings of the evaluation.
    """
    config, here = experiment.config, fingerprint(experiment.pretrained, experiment.dataset)
    record = saved.meta or training_meta(experiment)
    trained = {
        key: value
        for key, value in record["settings"].items()
        if key not in ("method", "seed") and not key.startswith("dataset.")
    }
    tested = {
        "dtype": np.dtype(experiment.model.dtype).name,
        "dataset.template": config.dataset.template,
    }
    changes = {"changes": record["changes"]} if record["changes"] else {}
    return {
        "method": record["method"],
        "dataset": config.dataset.name,
        "shots": record["settings"]["dataset.shots"],
        "seed": record["settings"]["seed"],
        "split": "test",
        "classes": config.dataset.classes,
        "trained_on": {key: record[key] for key in ("dataset", "classes")} if saved.meta else None,
        "of": {
            "step": saved.step,
            "epoch": saved.meta.get("epoch"),
            "epochs": saved.meta.get("epochs"),
            "prompts": saved.digest,
            "backbone": digest_of_json(here["clip"]),
            "template": config.dataset.template,
            "test_list": here["test"],
            "data": {"name": name_of_data(config), "digest": here["data"]},
            "trained_on": saved.meta.get("data"),
            "train_list": saved.meta.get("train_list"),
            "init_from": bool(saved.meta.get("init_from")),
            "settings": {**trained, **tested, **changes},
        },
    }


def has_own_data(experiment: Experiment, saved: Saved, workdir: epath.Path) -> bool:
    """Return whether an evaluation is on the dataset of the run in a workdir.

    It is if name, classes and either the images or their folder are the same. The first
    evaluation decides if the record of the prompts does not say which dataset they are of.
    """
    config, own = experiment.config, dict(saved.meta)
    if not own.get("data"):
        with contextlib.suppress(UserError, KeyError):
            results = read_result(workdir / RESULTS_FILE)
            own |= {key: results[key] for key in ("dataset", "classes")}
            own |= {"data": results["of"]["data"]}
    asked = config.dataset.name, config.dataset.classes
    if own and (own["dataset"], own["classes"]) != asked:
        return False
    if not own.get("data") or own["data"]["digest"] == experiment.dataset.digest:
        return True
    root = read_config(workdir, config).dataset.root
    return bool(root) and _real(root) == _real(config.dataset.root)


def outdated(results: Results, workdir: epath.Path) -> str:
    """Return why results are not of the newest prompts of their run, "" if they are.

    Results whose run cannot be found are taken as they are.
    """
    of = results.get("of")
    if results["method"] == ZERO_SHOT or not of:
        return ""
    held = newest(source_of(workdir))
    if held is None or held.prompts == of["prompts"]:
        return ""
    return (
        f"{workdir / RESULTS_FILE} is of the prompts of step {of['step']}, but the newest of the "
        f"run are of step {held.step}"
    )


def unfinished(results: Results) -> str:
    """Return how far the training was that results are of, "" if it had ended."""
    return initial_prompts.unfinished(results.get("of") or {})


def source_of(workdir: epath.Path) -> epath.Path:
    """Return the workdir or prompt file whose prompts a folder of results is of."""
    if (workdir / FOLDER).exists():
        return workdir
    if workdir.parent.name == "on":
        run = workdir.parent.parent
        file = run.with_name(f"{run.name}{prompt_file.SUFFIX}")
        # A run and its exported file share this folder, and a report is of the run's prompts.
        return file if file.is_file() and not (run / FOLDER).exists() else run
    try:
        named = json.loads((workdir / CONFIG_FILE).read_bytes())["init_from"]
    except (OSError, ValueError, KeyError, TypeError):
        return workdir
    return as_path(named) if named and isinstance(named, str) else workdir


def read_current(workdir: epath.Path) -> dict[str, Any]:
    """Return the results of a workdir.

    Raise UserError if there are none, or if they are not of its newest prompts.
    """
    results = read_result(workdir / RESULTS_FILE)
    if why := outdated(results, workdir):
        raise UserError(f"{why}: evaluate again, with --mode=eval.")
    return results


def finished(workdir: epath.Path, config: ConfigDict) -> bool:
    """Return whether a workdir has the results that a configuration asks for.

    They must be of the newest prompts, trained to the end, and of the same test classes and
    template, and so must predictions.npz if it is asked for.
    """
    try:
        results = read_result(workdir / RESULTS_FILE)
        of = results["of"]
        tested_on = results["dataset"], results["classes"], of["template"]
        if tested_on != (config.dataset.name, config.dataset.classes, config.dataset.template):
            return False
        zero_shot = results["method"] == ZERO_SHOT
        if not zero_shot and of["epoch"] not in (None, config.train.epochs):
            return False
        if outdated(results, workdir):
            return False
        return not config.eval.save_logits or _predictions_of(workdir) == of["prompts"]
    except (UserError, KeyError, TypeError):
        return False


def _predictions_of(workdir: epath.Path) -> str | None:
    """Return the digest of the prompts that predictions.npz is of, None if it cannot be read."""
    try:
        with (workdir / PREDICTIONS_FILE).open("rb") as file, np.load(file) as found:
            return str(found["prompts"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def _real(root: str) -> epath.Path | None:
    return as_path(root).resolve() if root else None
