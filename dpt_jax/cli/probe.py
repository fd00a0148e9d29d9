"""Fit a linear probe to frozen CLIP's features of the same shots, to compare prompts with.

    dpt-jax probe [--config=METHOD[:DATASET]] [--workdir=W] [--config.KEY=VALUE …]

Uses the configuration's data and CLIP, and no prompts. W is by default
runs/probe/DATASET/SHOTSshot/seedN. `dpt-jax report` shows the results beside those of the methods.
Needs scikit-learn and validation images.
"""

import argparse

from dpt_jax import cli
from dpt_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", metavar="W", help="where the results go")
    cli.add_config(parser)
    cli.add_hosts(parser)


def run(flags: argparse.Namespace) -> None:
    cli.connect_hosts(flags)
    from dpt_jax.config import validate
    from dpt_jax.configs import common
    from dpt_jax.evaluation.results import RESULTS_FILE, summary
    from dpt_jax.io import as_path
    from dpt_jax.logging import say
    from dpt_jax.methods import PROBE, ZERO_SHOT
    from dpt_jax.runs import probe
    from dpt_jax.training.workdir import has_config, run_dir

    # Nothing is learned, so the other sections of the method do not apply.
    config = common.get_config()
    config.method = ZERO_SHOT
    for key in ("seed", "dtype", "clip", "dataset", "eval"):
        config[key] = flags.given.config[key]
    validate(config)
    default = run_dir(as_path("runs"), config, PROBE.name)
    workdir = default if flags.workdir is None else as_path(flags.workdir)
    if has_config(workdir):
        raise UserError(f"--workdir: {workdir} is a run of its own: give another folder.")
    say(summary(probe(config, workdir)))
    say(f"results: {workdir / RESULTS_FILE}")
