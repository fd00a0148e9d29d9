"""Tiny copies of published datasets, from the command line to results."""

import json
import pathlib
from typing import Any

from dpt_jax.data.catalogue import CATALOGUE
from tests.helpers.commands import in_process


def run_dataset(
    name: str, source: str, root: pathlib.Path, weights: pathlib.Path, workdir: pathlib.Path
) -> dict[str, Any]:
    """Train CoOp for one step, or evaluate zero-shot CLIP if the dataset is only tested on.

    Returns:
        The results of the run.
    """
    method = "coop" if CATALOGUE[name].trainable else "zeroshot"
    flags = [
        f"--config=configs/{method}.py:{name}",
        f"--workdir={workdir}",
        f"--config.dataset.source={source}",
        f"--config.dataset.root={root}",
        f"--config.clip.weights={weights}",
        "--config.train.epochs=1",
        "--config.dataset.shots=1",
        "--config.train.batch_size=1000",  # one step, also on ImageNet's classes
    ]
    if method == "coop":
        flags.append("--config.text_prompt.length=2")
    in_process("main.py", *flags)
    return json.loads((workdir / "results.json").read_text(encoding="utf-8"))
