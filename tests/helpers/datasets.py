"""Trainings on tiny copies of the paper's datasets."""

import json
import pathlib

from dpt_jax.data.catalogue import CATALOGUE
from tests.helpers.commands import command


def run_dataset(
    name: str, source: str, root: pathlib.Path, weights: pathlib.Path, workdir: pathlib.Path
) -> dict:
    """main.py on a dataset of the paper: trains CoOp for an epoch, or zero-shot where there is
    nothing to train on.
    """
    train = ["--config.text_prompt.length=2", "--config.train.epochs=1", "--config.dataset.shots=1"]
    train += ["--config.train.batch_size=1000"]  # one step, also on ImageNet's classes
    method, options = ("coop", train) if CATALOGUE[name].trainable else ("zeroshot", [])
    command(
        "main.py",
        f"--config=configs/{method}.py:{name}",
        f"--config.dataset.source={source}",
        f"--config.dataset.root={root}",
        f"--config.clip.weights={weights}",
        f"--workdir={workdir}",
        *options,
    )
    results = json.loads((workdir / "results.json").read_text())
    assert (results["dataset"], results["method"]) == (name, method)
    return results
