"""Fit a linear probe to plain CLIP's features of the same shots, to compare prompts with.

    dpt-jax probe [--config=configs/METHOD.py[:DATASET]] [--workdir=W] [--config.KEY=VALUE …]

The settings of data and CLIP are those of the configuration, whatever its prompts. W is by default
runs/probe/DATASET/SHOTSshot/seedN. `dpt-jax report` shows the results beside those of the methods.
Needs scikit-learn and validation images.
"""

import argparse

from dpt_jax.cli import arguments as shared
from dpt_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the settings and the workdir."""
    shared.add_run_settings(parser)
    parser.add_argument("--workdir", metavar="W", help="where the results are kept")


def run(parser: argparse.ArgumentParser, arguments: list[str]) -> None:
    """Fit the probe, and print its accuracy."""
    flags, given = shared.begin(parser, arguments)
    from dpt_jax import settings
    from dpt_jax.evaluation.results import RESULTS_FILE, summary
    from dpt_jax.io import as_path
    from dpt_jax.logging import say
    from dpt_jax.methods import PROBE, ZERO_SHOT
    from dpt_jax.runs import probe
    from dpt_jax.training.checkpoints import FOLDER

    config = given.config
    config.method = ZERO_SHOT
    settings.check(config)
    default = settings.run_dir(as_path("runs"), config, PROBE.name)
    workdir = as_path(flags.workdir) if flags.workdir else default
    if (workdir / FOLDER).exists():
        raise UserError(f"--workdir: {workdir} is a run of prompts: give another folder.")
    say(summary(probe(config, workdir)))
    say(f"results: {workdir / RESULTS_FILE}")
