"""Trains and evaluates prompts for CLIP.

python main.py --config=configs/dpt.py
python main.py --config=configs/dpt.py:folder --config.dataset.root=DIR --workdir=W
python main.py --config=configs/dpt.py --mode=eval --workdir=W
"""

import pathlib
from collections.abc import Sequence

from absl import flags

from dpt_jax.commands import flags as cli

FLAGS = flags.FLAGS
cli.define_flags()
cli.define_host_flags()
flags.DEFINE_enum(
    "mode", "train", ["train", "eval"], "Train and evaluate, or evaluate the newest checkpoint."
)

flags.DEFINE_bool(
    "allow_changes",
    False,
    "Let a run go on with other settings than those that it was started with.",
)


def main(argv: Sequence[str]) -> None:
    # Importing JAX takes seconds that --help and a mistyped flag need not wait for.
    from dpt_jax.errors import UserError
    from dpt_jax.inference.evaluation import summary
    from dpt_jax.runtime.console import say
    from dpt_jax.settings import config as configs
    from dpt_jax.storage import prompt_file
    from dpt_jax.storage.checkpoints import FOLDER
    from dpt_jax.training.run import evaluate_run, train_and_evaluate, with_dtype

    if len(argv) > 1:
        raise UserError(f"unknown argument {argv[1]!r}: settings are given as --config.KEY=VALUE.")
    cli.start()
    config, overrides, dataset_named = cli.flag_config()
    workdir = pathlib.Path(FLAGS.workdir or configs.default_workdir(config)).expanduser()
    evaluating = FLAGS.mode == "eval"
    elsewhere = "init_from" in overrides and not FLAGS.workdir
    if prompt_file.is_prompt_file(workdir):
        if not evaluating:
            raise UserError(f"--workdir: {workdir} is a file of prompts: evaluate it with --mode=eval, or start from "
                            "it with --config.init_from and a folder as --workdir.")  # fmt: skip
        if "init_from" in overrides:
            raise UserError(
                "--workdir is a file of prompts and --config.init_from names others: give one of the two."
            )
        overrides, elsewhere = {**overrides, "init_from": str(workdir)}, True
    config = configs.resolve(config, overrides, dataset_named, workdir, evaluating)
    if evaluating and elsewhere:
        workdir = configs.evaluation_dir(pathlib.Path(config.init_from), config)
    if not evaluating:
        config = with_dtype(config, workdir)
        free = tuple(
            key
            for key in configs.flat(config.to_dict())
            if not key.startswith(configs.BOUND_ON_RESUME)
        )
        changed = configs.check_workdir(
            config, workdir, free if FLAGS.allow_changes else configs.FREE_ON_RESUME
        )
        if changed:
            say(f"{workdir}: going on with other settings than it was started with: {changed}.")
        results = train_and_evaluate(config, workdir, FLAGS.allow_changes)
    else:
        named = "init_from" in overrides or not (workdir / FOLDER).exists()
        source = pathlib.Path(config.init_from) if config.init_from and named else workdir
        results = evaluate_run(config, source, workdir)
    say(summary(results))
    say(f"results: {workdir / 'results.json'}")


if __name__ == "__main__":
    cli.run(main)
