"""Settings of a method on the small images and the small CLIP, and runs that were never trained."""

import json
import pathlib
import shutil

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import dpt
from dpt_jax.training.checkpoints import Checkpoints
from dpt_jax.training.saved import initial_prompts, training_meta
from dpt_jax.training.setup import Experiment
from dpt_jax.training.workdir import save_config
from tests.helpers.golden import IMAGES


def small_config(clip_dir: pathlib.Path, method=dpt, **values) -> ConfigDict:
    """Return the configuration of configs/METHOD.py:folder.  values: other keys, __ for dots."""
    config = method.get_config("folder")
    config.clip.weights, config.dataset.root = str(clip_dir), str(IMAGES)
    own = {key.replace("__", "."): value for key, value in values.items()}
    config.update_from_flattened_dict(own)
    return config


def flags_of(**values) -> list[str]:
    """Return the flags that set keys of a configuration, __ for dots."""
    return [f"--config.{key.replace('__', '.')}={value}" for key, value in values.items()]


def small_flags(clip_dir: object, **values) -> list[str]:
    """Return the same as flags of a command whose --config names the method."""
    return flags_of(**{"clip__weights": clip_dir, "dataset__root": IMAGES, **values})


def small_splits(root: pathlib.Path, **sources: str) -> pathlib.Path:
    """Write the small images below `root`.  sources: the original split of each new one."""
    for split, source in sources.items():
        shutil.copytree(IMAGES / source, root / split)
    return root


def save_run(
    experiment: Experiment, workdir: pathlib.Path, step: int = 1, noise: float = 0.0
) -> pathlib.Path:
    """Write a run that ends with its first prompts, moved by some noise."""
    prompts = jax.tree.map(lambda x: x + np.float32(noise), initial_prompts(experiment))
    save_config(experiment.config, workdir)
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(step, prompts, {**training_meta(experiment), "epoch": 1})
        checkpoints.wait()
    return workdir


def results_of(workdir: pathlib.Path) -> dict:
    """Return what results.json of a run has."""
    return json.loads((workdir / "results.json").read_text())
