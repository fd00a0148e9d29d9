"""The commands: `dpt-jax COMMAND …`, which is `python -m dpt_jax COMMAND …`, and main.py.

Each command has a file with two functions, `add_arguments` and `run`. JAX is imported in `run`, so
that --help and mistyped flags are fast.
"""

import argparse
import gc
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from dpt_jax.cli import arguments as shared
from dpt_jax.cli import terminal
from dpt_jax.errors import UserError

COMMANDS = {
    "check": "Check the results, the storage and the speed of this machine.",
    "train": "Train prompts, and evaluate them.",
    "eval": "Evaluate the newest prompts of a run.",
    "predict": "Classify images.",
    "visualize": "Draw what the image tower attends to.",
    "explain": "Print the words nearest to each learned context vector.",
    "report": "Make tables and figures of runs.",
    "probe": "Fit a linear probe to compare prompts with.",
    "sweep": "Run methods x datasets x shots x seeds as one job.",
    "settings": "Print every settings key with its default and a comment.",
    "convert": "Convert weights and prompts from and to other formats.",
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[:1].lower()}{message[1:]}: see `{self.prog} --help`.")


def main(arguments: Sequence[str] | None = None, prog: str = "dpt-jax") -> None:
    """Run the command that the arguments name, those of the process by default."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    terminal.guard(lambda given: _dispatch(given, prog), given)


def main_py(arguments: Sequence[str]) -> None:
    """Run main.py: `train`, or `eval` with --mode=eval."""
    terminal.guard(lambda given: _run("train", given, "main.py"), list(arguments))


def _dispatch(arguments: list[str], prog: str) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage(prog))
        sys.exit(0 if arguments else 2)
    name, *arguments = arguments
    if name == "--version":
        from dpt_jax import __version__

        print(__version__)
        return
    if name not in COMMANDS:
        raise UserError(f"{name!r} is not a command: use one of {', '.join(COMMANDS)}.")
    prog = f"{prog} {name}"
    if name == "eval":
        name, arguments = "train", ["--mode=eval", *arguments]
    _run(name, arguments, prog)


def _run(name: str, arguments: list[str], prog: str) -> None:
    # Imports and tracing make millions of objects that stay. Searching them for garbage as often
    # as Python does by default took a tenth of the time of `predict`.
    gc.set_threshold(50_000, 20, 20)
    command = importlib.import_module(f"dpt_jax.cli.{name}")
    parser = Parser(
        prog,
        description=command.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_arguments(parser)
    parser.add_argument(
        "--debug", action="store_true", help="print a traceback for wrong input too"
    )
    if "-h" in arguments or "--help" in arguments:
        parser.parse_args(["--help"])
    _start_libraries()
    command.run(shared.parse(parser, arguments))


def _start_libraries() -> None:
    """Prepare libraries that read absl's flags, and keep their logs off the terminal."""
    from absl import flags, logging

    flags.FLAGS.mark_as_parsed()  # Grain reads its own
    logging.set_verbosity(logging.FATAL)  # Orbax logs tracebacks of what it raises


def _usage(prog: str) -> str:
    lines = [f"  {name:10} {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [f"usage: {prog} COMMAND …", "", *lines, "", f"`{prog} COMMAND --help` shows more."]
    )
