"""A whole run, from a validated configuration to results, for `dpt-jax train` and for sweeps."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from etils import epath
from ml_collections import ConfigDict

from dpt_jax import distributed
from dpt_jax.config import FREE, UNBOUND
from dpt_jax.data.look import check_trainable, is_own, look
from dpt_jax.errors import UserError
from dpt_jax.evaluation.evaluate import evaluate, validation
from dpt_jax.evaluation.probe import fit_and_predict
from dpt_jax.evaluation.results import RESULTS_FILE, has_own_data, write_results
from dpt_jax.io import is_remote
from dpt_jax.logging import say, say_once
from dpt_jax.methods import PROBE
from dpt_jax.training.checkpoints import FOLDER, Saved, is_prompt_file
from dpt_jax.training.initial_prompts import saved_prompts
from dpt_jax.training.loop import Callback, train
from dpt_jax.training.record import training_meta
from dpt_jax.training.setup import Experiment, compute_dtype, prepare
from dpt_jax.training.workdir import (
    SPLIT_FILE,
    check_same_run,
    evaluation_dir,
    has_config,
    load_config,
    save_config,
    write_split,
    write_train_files,
)

Results = dict[str, Any]
# Loads data and backbone; that of a sweep caches the backbone for later runs.
Prepare = Callable[[ConfigDict], Experiment]


def train_run(
    config: ConfigDict,
    workdir: epath.Path,
    allow_changes: bool = False,
    prepare: Prepare = prepare,
    callbacks: Sequence[Callback] = (),
    profile: int = 0,
) -> tuple[Experiment, Saved]:
    """Train or resume the run of a workdir; return the experiment and its newest prompts.

    Args:
      config: Validated.
      workdir: Folder of the run.
      allow_changes: Whether a resumed run may have other settings and images.
      prepare: Loads data and backbone.
      callbacks: See `training.loop.train`.
      profile: Steps to trace.

    Raises:
      UserError: The workdir is a prompt file, or has a run with other settings or images.
    """
    if is_prompt_file(workdir):
        raise UserError(
            f"--workdir: {workdir} is a prompt file: evaluate it with --mode=eval, or start "
            "from it with --config.init_from and a folder as --workdir."
        )
    has_run = has_config(workdir) or (workdir / FOLDER).exists()
    if (workdir / RESULTS_FILE).exists() and not has_run:
        raise UserError(f"{workdir} has results of a probe: use another --workdir.")
    if changed := check_same_run(config, workdir, UNBOUND if allow_changes else FREE):
        say(f"{workdir}: changed settings: {changed}.")
    config = with_split(with_dtype(config, workdir), workdir)
    experiment = prepare(config)
    if experiment.model.config.learns:
        validates = experiment.dataset.val and not experiment.model.config.classifier
        validate = validation(experiment) if validates else None
        train(experiment, workdir, allow_changes, callbacks, profile, validate)
    elif not has_own_data(experiment, Saved(0, {}, {}), workdir):
        raise UserError(
            f"{workdir} has results of {config.method} on other images: use another --workdir, or "
            "--mode=eval."
        )
    else:
        save_config(config, workdir)
        write_split(experiment.dataset, workdir)
    return experiment, saved_prompts(experiment, workdir)


def probe(config: ConfigDict, workdir: epath.Path, prepare: Prepare = prepare) -> Results:
    """Fit a linear probe to the shots of a zero-shot configuration; return its results.

    The workdir gets the list of training images and the results, but no config.json, which would
    make it a run of zero-shot CLIP.

    Raises:
      UserError: As `fit_and_predict`, or a class has no training image.
    """
    config = with_split(with_dtype(config, workdir), workdir)
    experiment = prepare(config)
    check_trainable(experiment.dataset, config)
    table = look(experiment.dataset, config)
    if is_own(config.dataset):
        say_once(table)
    found = fit_and_predict(experiment)
    if distributed.is_first():
        workdir.mkdir(parents=True, exist_ok=True)
    write_train_files(experiment.dataset, workdir)
    by = f"validation({len(experiment.dataset.val)})"
    about = training_meta(experiment) | {"method": PROBE.name, "selection": by}
    return write_results(experiment, found, Saved(0, {}, about), workdir)


def evaluate_run(
    config: ConfigDict,
    source: epath.Path,
    workdir: epath.Path | None,
    prepare: Prepare = prepare,
) -> tuple[Results, epath.Path]:
    """Evaluate the newest prompts of `source`, a workdir or a prompt file.

    Args:
      config: Configuration of the evaluation, validated.
      source: Where the prompts are.
      workdir: Where the results go. None means SOURCE/on/DATASET, and so does the source itself if
        it was trained on another dataset or on other classes.
      prepare: Loads data and backbone.

    Returns:
      The results, and the folder that they were written to.

    Raises:
      UserError: The prompts were trained with other settings, or the workdir has other prompts.
    """
    config = with_dtype(config, source)
    experiment = prepare(config)
    saved = saved_prompts(experiment, source)
    if workdir is None or (workdir == source and not has_own_data(experiment, saved, workdir)):
        workdir = evaluation_dir(source, config)
    elif workdir != source and (workdir / FOLDER).exists():
        raise UserError(
            f"--workdir: {workdir} is a run of its own: give another folder for the results of "
            f"the prompts of {source}."
        )
    if workdir != source:
        config.init_from = str(source if is_remote(source) else source.absolute())
    if not (workdir / FOLDER).exists():
        save_config(config, workdir)
        write_split(experiment.dataset, workdir)
    return evaluate(experiment, saved, workdir), workdir


def with_dtype(config: ConfigDict, workdir: epath.Path) -> ConfigDict:
    """Return the configuration with dtype=auto replaced by float32 or bfloat16.

    It is the type that the workdir was started with, else the default of this device.
    """
    if config.dtype != "auto":
        return config
    dtype = jnp.dtype(compute_dtype(config)).name
    config = config.copy_and_resolve_references()
    config.dtype = load_config(workdir).dtype if has_config(workdir) else dtype
    return config


def with_split(config: ConfigDict, workdir: epath.Path) -> ConfigDict:
    """Return the configuration with the split that a workdir was started with.

    Images added since then are not used. A split that the configuration names takes precedence.
    """
    own = workdir / SPLIT_FILE
    if config.dataset.split or config.dataset.source != "folder" or not own.exists():
        return config
    config = config.copy_and_resolve_references()
    config.dataset.split = str(own)
    return config
