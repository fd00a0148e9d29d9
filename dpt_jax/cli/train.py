"""Train prompts and evaluate them, or only evaluate them.

    python main.py --config=configs/dpt.py
    dpt-jax train --config=dpt:folder --config.dataset.root=DIR --workdir=W [--plan]
    python main.py --mode=eval --workdir=W [--config.dataset.root=DIR …]
    python main.py --mode=eval --config=dpt:DATASET --config.init_from=W

The last command tests the prompts of W, a workdir or a prompt file, on another dataset, and writes
to W/on/DATASET. `dpt-jax train` is main.py, and `dpt-jax eval` is main.py --mode=eval. Exit codes:
0 done, 2 wrong input, 75 stopped and saved (the same command resumes), 130 interrupted before there
was anything to save.
"""

import argparse
from typing import TYPE_CHECKING

from dpt_jax import cli
from dpt_jax.errors import UserError

if TYPE_CHECKING:
    from etils import epath

    from dpt_jax.config import Given
    from dpt_jax.evaluation.results import Results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add, add_mode = parser.add_argument, parser.add_mutually_exclusive_group().add_argument
    add("--workdir", metavar="W", help="default runs/METHOD/DATASET/SHOTSshot/seedN")
    add_mode("--mode", choices=("train", "eval"), default="train", help="default train")
    add_mode("--plan", action="store_true", help="print a table of the images, and train nothing")
    add("--allow_changes", action="store_true", help="resume a run with other settings")
    add("--profile", type=cli.at_least_one, default=0, metavar="STEPS",
        help="write a jax.profiler trace of this number of steps to W/profile")  # fmt: skip
    cli.add_config(parser)
    cli.add_hosts(parser)


def run(flags: argparse.Namespace) -> None:
    given = flags.given
    cli.connect_hosts(flags)
    from dpt_jax.data.dataset import check_trainable, load_dataset, look
    from dpt_jax.evaluation import evaluate as evaluation
    from dpt_jax.evaluation.results import RESULTS_FILE, summary
    from dpt_jax.io import as_path
    from dpt_jax.logging import say
    from dpt_jax.runs import train_run, with_split
    from dpt_jax.training.workdir import run_dir, training_config

    is_default = flags.workdir is None
    workdir = run_dir(as_path("runs"), given.config) if is_default else as_path(flags.workdir)
    if flags.mode == "eval":
        results, workdir = evaluate(given, workdir, is_default)
    else:
        config = training_config(given.config, given.overrides, workdir)
        if flags.plan:
            config = with_split(config, workdir)
            dataset = load_dataset(config.dataset, config.seed)
            check_trainable(dataset, config)
            say(look(dataset, config))
            return
        trained = train_run(config, workdir, flags.allow_changes, profile=flags.profile)
        results = evaluation.evaluate(*trained, workdir)
    say(f"{summary(results)}\nresults: {workdir / RESULTS_FILE}")
    if flags.mode == "train":
        say(f"next, a page of the run: dpt-jax report {workdir} --html")


def evaluate(
    given: "Given", workdir: "epath.Path", is_default: bool
) -> "tuple[Results, epath.Path]":
    """Evaluate the prompts of a workdir, a prompt file or init_from; return results and folder."""
    from dpt_jax.io import as_path
    from dpt_jax.runs import evaluate_run
    from dpt_jax.training.checkpoints import is_prompt_file
    from dpt_jax.training.workdir import evaluation_config, has_config, source_of

    overrides = dict(given.overrides)
    if is_prompt_file(workdir):
        if "init_from" in overrides:
            raise UserError("give --config.init_from or a prompt file as --workdir, not both.")
        overrides["init_from"], is_default = str(workdir), True
    config = evaluation_config(given.config, overrides, given.dataset_named, workdir)
    named = config.init_from and ("init_from" in overrides or not has_config(workdir))
    source = as_path(config.init_from) if named else source_of(workdir)
    return evaluate_run(
        config, source, None if is_default and "init_from" in overrides else workdir
    )
