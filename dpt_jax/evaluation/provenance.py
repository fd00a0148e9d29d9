"""What results are of: prompts, backbone, images and settings; and whether they still are."""

import json
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from dpt_jax import settings
from dpt_jax.data.dataset import digest_of_examples
from dpt_jax.errors import UserError
from dpt_jax.evaluation.results import PREDICTIONS_FILE, RESULTS_FILE, Results, read_result
from dpt_jax.io import as_path
from dpt_jax.methods import METHODS, ZERO_SHOT
from dpt_jax.training import initial_prompts as adoption
from dpt_jax.training import prompt_file
from dpt_jax.training.checkpoints import FOLDER, Saved
from dpt_jax.training.fingerprint import backbone_id
from dpt_jax.training.newest import newest
from dpt_jax.training.setup import Experiment, data_of

# Keys that do not change the result, or that results name in another way.
ELSEWHERE = ("method", "seed", "init_from", "dtype", "clip.weights")


def describe(experiment: Experiment, saved: Saved) -> dict[str, Any]:
    """Return what the results of an evaluation are of, as results.json has it under "of"."""
    meta = saved.meta
    return {
        "step": saved.step,
        "epoch": meta.get("epoch"),
        "epochs": meta.get("epochs"),
        "prompts": saved.digest,
        "backbone": backbone_id(experiment.pretrained),
        "template": experiment.config.dataset.template,
        "test_list": digest_of_examples(experiment.dataset.test),
        "data": data_of(experiment),
        "trained_on": meta.get("data"),
        "train_list": meta.get("train_list"),
        "init_from": bool(meta.get("init_from")),
        "settings": fingerprint(experiment),
    }


def fingerprint(experiment: Experiment) -> dict[str, Any]:
    """Return every setting that changes the result, but for the seed."""
    config = experiment.config
    flat = settings.flat(config.to_dict())
    parts = METHODS[config.method].parts
    absent = tuple(
        f"{section}." for part, section in settings.SECTION_OF.items() if part not in parts
    )
    if not experiment.model.prompts.learned:
        absent += ("train.", "loss.")
    left_out = {*ELSEWHERE, *settings.keys_that_may_change()}
    kept = {
        key: value
        for key, value in flat.items()
        if key not in left_out and not key.startswith(("dataset.", *absent))
    }
    dtype = np.dtype(experiment.model.dtype).name
    return kept | {"dtype": dtype, "dataset.template": config.dataset.template}


def outdated(results: Results, workdir: epath.Path) -> str:
    """Return in words why results are not of the newest prompts of their run, "" where they are.

    Results whose run cannot be found are taken for what they say. So are those of older
    versions, which do not say what they are of.
    """
    of = results.get("of")
    if results["method"] == ZERO_SHOT or not of:
        return ""
    held = newest(source_of(workdir))
    if held is None or held.prompts == of["prompts"]:
        return ""
    return (
        f"{workdir / RESULTS_FILE} is of the prompts of step {of['step']}, and the run's newest "
        f"are others, of step {held.step}"
    )


def unfinished(results: Results) -> str:
    """Return how far the training was that the results are of, "" where it had ended."""
    return adoption.unfinished(results.get("of") or {})


def source_of(workdir: epath.Path) -> epath.Path:
    """Return the workdir or prompt file whose prompts a folder of results is of."""
    if (workdir / FOLDER).exists():
        return workdir
    if workdir.parent.name == "on":
        run = workdir.parent.parent
        file = run.with_name(f"{run.name}{prompt_file.SUFFIX}")
        # A run and its exported file share this place, and a report is of the run's prompts.
        return file if file.is_file() and not (run / FOLDER).exists() else run
    try:
        named = json.loads((workdir / settings.CONFIG_FILE).read_text(encoding="utf-8"))[
            "init_from"
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return workdir
    return as_path(named) if named and isinstance(named, str) else workdir


def read_current(workdir: epath.Path) -> dict[str, Any]:
    """Return the results of a workdir.

    Raise UserError where there are none, or where they are not of its newest prompts.
    """
    results = read_result(workdir / RESULTS_FILE)
    if why := outdated(results, workdir):
        raise UserError(f"{why}: evaluate again, with --mode=eval.")
    return results


def finished(workdir: epath.Path, config: ConfigDict) -> bool:
    """Return whether a workdir has the results that a configuration asks for.

    They must be of the newest prompts, trained to the end, and of the same test classes and
    template, and so must predictions.npz where it is asked for.
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
    """Return the digest of the prompts that predictions.npz is of."""
    try:
        with (workdir / PREDICTIONS_FILE).open("rb") as file, np.load(file) as found:
            return str(found["prompts"])
    except (OSError, ValueError, KeyError):
        return None
