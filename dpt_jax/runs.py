"""A whole run, from a checked configuration to results, for main.py and for sweeps."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from etils import epath
from ml_collections import ConfigDict

from dpt_jax import distributed, settings
from dpt_jax.evaluation.evaluate import evaluate, write_results
from dpt_jax.evaluation.probe import fit_and_predict
from dpt_jax.methods import PROBE
from dpt_jax.training import train_files
from dpt_jax.training.checkpoints import FOLDER, Saved
from dpt_jax.training.initial_prompts import saved_prompts
from dpt_jax.training.loop import train
from dpt_jax.training.setup import (
    Experiment,
    compute_dtype,
    prepare,
    training_meta,
)

Results = dict[str, Any]
# Loads data and backbone; a sweep's keeps the backbone for the runs that follow.
Prepare = Callable[[ConfigDict], Experiment]


def train_and_evaluate(
    config: ConfigDict,
    workdir: epath.Path,
    allow_changes: bool = False,
    prepare: Prepare = prepare,
) -> Results:
    """Train as the configuration says, or go on with what the workdir has; return the results.

    config: checked, and compared with that of the workdir. allow_changes: whether a run may go on
    with settings and images other than those that it was started with.
    """
    config = with_dtype(config, workdir)
    experiment = prepare(config)
    # A run keeps the settings that it was started with, for whoever reads its results.
    (settings.save if allow_changes else settings.save_once)(config, workdir)
    if experiment.model.prompts.learned:
        train(experiment, workdir, allow_changes)
    # The prompts that are on disk: results belong to these.
    return evaluate(experiment, saved_prompts(experiment, workdir), workdir)


def probe(config: ConfigDict, workdir: epath.Path, prepare: Prepare = prepare) -> Results:
    """Fit a linear probe to the shots of a configuration of plain CLIP; return its results.

    The workdir gets the list of training images and the results. It gets no settings, since
    whoever reads these takes the workdir for plain CLIP's. Raise UserError as `fit_and_predict`,
    and where a class has no image to train on.
    """
    config = with_dtype(config, workdir)
    experiment = prepare(config)
    train_files.check_trainable(experiment.dataset, config.dataset.name)
    found = fit_and_predict(experiment)
    if distributed.is_first():
        workdir.mkdir(parents=True, exist_ok=True)
    train_files.write(experiment.dataset.train, workdir)
    about = training_meta(experiment) | {
        "method": PROBE.name,
        "dataset": config.dataset.name,
        "classes": config.dataset.classes,
    }
    return write_results(experiment, PROBE.name, found, Saved(0, {}, about), workdir)


def evaluate_run(
    config: ConfigDict,
    source: epath.Path,
    workdir: epath.Path,
    prepare: Prepare = prepare,
) -> Results:
    """Evaluate the newest prompts of `source`, a workdir or a prompt file; return the results.

    workdir: where the results are written: that of the run, or another one if its prompts are
    evaluated on other data.
    """
    config = with_dtype(config, source)
    experiment = prepare(config)
    saved = saved_prompts(experiment, source)
    # A run keeps the settings that it was trained with. Elsewhere, they are those of the results.
    trained_here = (workdir / FOLDER).exists()
    (settings.save_once if trained_here else settings.save)(config, workdir)
    return evaluate(experiment, saved, workdir)


def check_same_sweep(config: ConfigDict, workdir: epath.Path) -> None:
    """Raise UserError where a workdir has a run that is not one of a sweep with these settings.

    One that is finished may not be of another backbone, nor on another folder.
    """
    fixed = {"clip.weights"} | ({"dataset.root"} if config.dataset.source == "folder" else set())
    settings.check_same_run(config, workdir, settings.keys_that_may_change() - fixed)


def with_dtype(config: ConfigDict, workdir: epath.Path) -> ConfigDict:
    """Return the configuration with `dtype=auto` replaced by what it means.

    That is what the workdir was started with, on whatever devices. A new run
    gets what its devices are best at. So config.json says what was computed in,
    and a run that was begun on a CPU goes on in float32 on a GPU.
    """
    if config.dtype != "auto":
        return config
    config = config.copy_and_resolve_references()
    if (workdir / settings.CONFIG_FILE).exists():
        # "auto" itself in a workdir of an older version, which did not say.
        config.dtype = settings.load(workdir, config).dtype
    else:
        config.dtype = jnp.dtype(compute_dtype(config)).name
    return config
