"""Train prompts and evaluate them, or evaluate what was trained.

    python main.py --config=configs/dpt.py
    python main.py --config=configs/dpt.py:folder --config.dataset.root=DIR --workdir=W
    python main.py --config=configs/dpt.py --mode=eval --workdir=W

`dpt-jax train` and `dpt-jax eval` are the same. Exit codes: 0 done, 2 wrong input, 75 stopped and
saved (the same command goes on), 130 interrupted before there was anything to save.
"""

import argparse
from typing import TYPE_CHECKING, Any

from dpt_jax.cli import arguments as shared
from dpt_jax.errors import UserError

if TYPE_CHECKING:
    from etils import epath

    from dpt_jax.settings import ConfigArguments

MODES = ("train", "eval")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of main.py."""
    shared.add_run_settings(parser)
    parser.add_argument(
        "--workdir",
        metavar="W",
        help="where the run is kept; default runs/METHOD/DATASET/SHOTSshot/seedN",
    )
    parser.add_argument("--mode", choices=MODES, default="train", help="default train")
    parser.add_argument(
        "--allow_changes",
        action="store_true",
        help="go on with other settings than the run was started with",
    )


def run(parser: argparse.ArgumentParser, arguments: list[str]) -> None:
    """Train or evaluate, as --mode says."""
    flags, given = shared.begin(parser, arguments)
    from dpt_jax.io import as_path

    workdir = as_path(flags.workdir) if flags.workdir else None
    if flags.mode == "train":
        train(given, workdir, flags.allow_changes)
    else:
        evaluate(given, workdir)


def train(given: "ConfigArguments", named: "epath.Path | None", allow_changes: bool) -> None:
    """Train and evaluate in the named workdir, or in the default one."""
    from dpt_jax import settings
    from dpt_jax.logging import say
    from dpt_jax.runs import train_and_evaluate, with_dtype
    from dpt_jax.training import prompt_file

    workdir = named or settings.default_workdir(given.config)
    if prompt_file.is_prompt_file(workdir):
        raise UserError(
            f"--workdir: {workdir} is a file of prompts: evaluate it with --mode=eval, or start "
            "from it with --config.init_from and a folder as --workdir."
        )
    config = settings.settings_for_training(given.config, given.overrides, workdir)
    config = with_dtype(config, workdir)
    may_change = settings.keys_that_may_change(asked=allow_changes)
    if changed := settings.check_same_run(config, workdir, may_change):
        say(f"{workdir}: going on with other settings than it was started with: {changed}.")
    _report(train_and_evaluate(config, workdir, allow_changes), workdir)
    say(f"next, a page of the run: dpt-jax report {workdir} --html")


def evaluate(given: "ConfigArguments", named: "epath.Path | None") -> None:
    """Evaluate what the named workdir or prompt file, or init_from, holds."""
    from dpt_jax import settings
    from dpt_jax.io import as_path
    from dpt_jax.runs import evaluate_run
    from dpt_jax.training import prompt_file
    from dpt_jax.training.checkpoints import FOLDER

    overrides = dict(given.overrides)
    workdir = named or settings.default_workdir(given.config)
    # Prompts from elsewhere are evaluated below the run that they are of.
    elsewhere = "init_from" in overrides and named is None
    if prompt_file.is_prompt_file(workdir):
        if "init_from" in overrides:
            raise UserError(
                "--workdir is a file of prompts and --config.init_from names others: give one of "
                "the two."
            )
        overrides["init_from"] = str(workdir)
        elsewhere = True
    config = settings.settings_for_evaluation(given.config, overrides, given.dataset_named, workdir)
    if elsewhere:
        workdir = settings.evaluation_dir(as_path(config.init_from), config)
    named_elsewhere = "init_from" in overrides or not (workdir / FOLDER).exists()
    source = as_path(config.init_from) if config.init_from and named_elsewhere else workdir
    _report(*evaluate_run(config, source, workdir))


def _report(results: dict[str, Any], workdir: "epath.Path") -> None:
    from dpt_jax.evaluation.results import RESULTS_FILE, summary
    from dpt_jax.logging import say

    say(summary(results))
    say(f"results: {workdir / RESULTS_FILE}")
