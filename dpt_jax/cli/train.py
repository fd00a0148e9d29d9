"""Train prompts and evaluate them, or evaluate what was trained.

    python main.py --config=configs/dpt.py
    python main.py --config=configs/dpt.py:folder --config.dataset.root=DIR --workdir=W
    python main.py --config=configs/dpt.py --mode=eval --workdir=W

`dpt-jax train` and `dpt-jax eval` are the same. Exit codes: 0 done, 2 wrong input, 75 stopped and
saved (the same command resumes), 130 interrupted before there was anything to save.
"""

import argparse
from typing import TYPE_CHECKING

from dpt_jax.cli import arguments as shared
from dpt_jax.errors import UserError

if TYPE_CHECKING:
    from etils import epath
    from ml_collections import ConfigDict

    from dpt_jax.cli.config_flag import Given
    from dpt_jax.runs import Results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of main.py."""
    parser.add_argument(
        "--workdir",
        metavar="W",
        help="folder of the run; default runs/METHOD/DATASET/SHOTSshot/seedN",
    )
    parser.add_argument("--mode", choices=("train", "eval"), default="train", help="default train")
    parser.add_argument(
        "--allow_changes",
        action="store_true",
        help="resume with other settings than the run was started with",
    )
    shared.add_config(parser)
    shared.add_hosts(parser)


def run(parser: argparse.ArgumentParser, arguments: list[str]) -> None:
    """Train and evaluate, or with --mode=eval only evaluate."""
    flags, given = shared.parse(parser, arguments)
    shared.connect_hosts(flags)
    from dpt_jax.config import default_workdir
    from dpt_jax.evaluation.results import RESULTS_FILE, summary
    from dpt_jax.io import as_path
    from dpt_jax.logging import say
    from dpt_jax.runs import train_and_evaluate

    named = as_path(flags.workdir) if flags.workdir else None
    workdir = named or default_workdir(given.config)
    if flags.mode == "train":
        config = config_to_train(given, workdir, flags.allow_changes)
        results = train_and_evaluate(config, workdir, flags.allow_changes)
    else:
        results, workdir = evaluate(given, workdir, named is None)
    say(summary(results))
    say(f"results: {workdir / RESULTS_FILE}")
    if flags.mode == "train":
        say(f"next, a page of the run: dpt-jax report {workdir} --html")


def config_to_train(given: "Given", workdir: "epath.Path", allow_changes: bool) -> "ConfigDict":
    """Return the configuration of a training in a workdir.

    Raises:
      UserError: The workdir is a prompt file, or has a run with other settings.
    """
    from dpt_jax.config import check_same_run, keys_that_may_change, training_config
    from dpt_jax.logging import say
    from dpt_jax.training import prompt_file

    if prompt_file.is_prompt_file(workdir):
        raise UserError(
            f"--workdir: {workdir} is a file of prompts: evaluate it with --mode=eval, or start "
            "from it with --config.init_from and a folder as --workdir."
        )
    config = training_config(given.config, given.overrides, workdir)
    if changed := check_same_run(config, workdir, keys_that_may_change(asked=allow_changes)):
        say(f"{workdir}: resuming with other settings than it was started with: {changed}.")
    return config


def evaluate(
    given: "Given", workdir: "epath.Path", is_default: bool
) -> "tuple[Results, epath.Path]":
    """Evaluate the prompts of a workdir, a prompt file or init_from.

    Returns:
      The results, and the folder that they were written to.
    """
    from dpt_jax.config import evaluation_config, evaluation_dir
    from dpt_jax.io import as_path
    from dpt_jax.runs import evaluate_run
    from dpt_jax.training import prompt_file
    from dpt_jax.training.checkpoints import FOLDER

    overrides = dict(given.overrides)
    # Prompts from elsewhere are evaluated in a folder below their run.
    elsewhere = "init_from" in overrides and is_default
    if prompt_file.is_prompt_file(workdir):
        if "init_from" in overrides:
            raise UserError(
                "--workdir is a file of prompts and --config.init_from names others: give one of "
                "the two."
            )
        overrides["init_from"] = str(workdir)
        elsewhere = True
    config = evaluation_config(given.config, overrides, given.dataset_named, workdir)
    if elsewhere:
        workdir = evaluation_dir(as_path(config.init_from), config)
    named_elsewhere = "init_from" in overrides or not (workdir / FOLDER).exists()
    source = as_path(config.init_from) if config.init_from and named_elsewhere else workdir
    return evaluate_run(config, source, workdir)
