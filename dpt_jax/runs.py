"""A whole run, from a checked configuration to results, for main.py and for sweeps."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from etils import epath
from ml_collections import ConfigDict

from dpt_jax import distributed
from dpt_jax.config import (
    CONFIG_FILE,
    check_same_run,
    evaluation_dir,
    keys_that_may_change,
    read_config,
    save_config,
)
from dpt_jax.errors import UserError
from dpt_jax.evaluation.evaluate import evaluate, write_results
from dpt_jax.evaluation.probe import fit_and_predict
from dpt_jax.evaluation.provenance import has_own_data
from dpt_jax.methods import PROBE
from dpt_jax.training import train_files
from dpt_jax.training.checkpoints import FOLDER, Saved
from dpt_jax.training.fingerprint import training_meta
from dpt_jax.training.initial_prompts import saved_prompts
from dpt_jax.training.loop import train
from dpt_jax.training.setup import Experiment, compute_dtype, prepare

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
    if experiment.model.config.has_prompts:
        train(experiment, workdir, allow_changes)
    elif not has_own_data(experiment, Saved(0, {}, {}), workdir):
        raise UserError(
            f"{workdir} has results of {config.method} on other images: use another --workdir, or "
            "--mode=eval."
        )
    else:
        save_config(config, workdir)
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
    about = training_meta(experiment) | {"method": PROBE.name}
    return write_results(experiment, found, Saved(0, {}, about), workdir)


def evaluate_run(
    config: ConfigDict,
    source: epath.Path,
    workdir: epath.Path,
    prepare: Prepare = prepare,
) -> tuple[Results, epath.Path]:
    """Evaluate the newest prompts of `source`, a workdir or a prompt file.

    Args:
      config: Of the evaluation, checked.
      source: Where the prompts are.
      workdir: Where the results go. A run keeps its own: on another dataset, or other classes,
        they go to WORKDIR/on/DATASET.
      prepare: Loads data and backbone.

    Returns:
      The results, and the folder that they were written to.

    Raises:
      UserError: The prompts were trained with other settings, or the workdir has other prompts.
    """
    config = with_dtype(config, source)
    experiment = prepare(config)
    saved = saved_prompts(experiment, source)
    if workdir != source and (workdir / FOLDER).exists():
        raise UserError(
            f"--workdir: {workdir} is a run of its own: give another folder for the results of "
            f"the prompts of {source}."
        )
    if workdir == source and not has_own_data(experiment, saved, workdir):
        workdir = evaluation_dir(source, config)
        config.init_from = str(source)
    if not (workdir / FOLDER).exists():
        save_config(config, workdir)
    return evaluate(experiment, saved, workdir), workdir


def check_same_sweep(config: ConfigDict, workdir: epath.Path) -> None:
    """Raise UserError where a workdir has a run that is not one of a sweep with these settings.

    One that is finished may not be of another backbone, nor on another folder.
    """
    fixed = {"clip.weights"} | ({"dataset.root"} if config.dataset.source == "folder" else set())
    check_same_run(config, workdir, keys_that_may_change() - fixed)


def with_dtype(config: ConfigDict, workdir: epath.Path) -> ConfigDict:
    """Return the configuration with `dtype=auto` replaced by what it means.

    That is what the workdir was started with, on whatever devices. A new run
    gets what its devices are best at. So config.json says what was computed in,
    and a run that was begun on a CPU goes on in float32 on a GPU.
    """
    if config.dtype != "auto":
        return config
    config = config.copy_and_resolve_references()
    if (workdir / CONFIG_FILE).exists():
        # "auto" itself in a workdir of an older version, which did not say.
        config.dtype = read_config(workdir, config).dtype
    else:
        config.dtype = jnp.dtype(compute_dtype(config)).name
    return config
