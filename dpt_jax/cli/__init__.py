"""The commands: `dpt-jax COMMAND …`, which is `python -m dpt_jax COMMAND …`, and main.py.

Each command has a file with two functions, `add_arguments` and `run`. JAX is imported in `run`, so
that --help and mistyped flags are fast. A command ends with one sentence and exit code 2 for wrong
input, and with a traceback for a bug.
"""

import argparse
import gc
import importlib
import io
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from dpt_jax import __version__
from dpt_jax.errors import BUG, INTERRUPTED, USER_ERROR, UserError

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
STORES = ("gcsfs", "google", "aiohttp")  # packages that raise errors about buckets


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence, and whose description keeps its lines."""

    def __init__(self, prog: str, description: str | None) -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, None, description, formatter_class=formatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[:1].lower()}{message[1:]}: see `{self.prog} --help`.")


def main(arguments: Sequence[str] | None = None, prog: str = "dpt-jax") -> None:
    """Run the command that the arguments name, those of the process by default."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    guard(lambda given: _dispatch(given, prog), given)


def main_py(arguments: Sequence[str]) -> None:
    """Run main.py: `train`, or `eval` with --mode=eval."""
    guard(lambda given: _run("train", given, "main.py"), list(arguments))


def _dispatch(arguments: list[str], prog: str) -> None:
    lines = [f"  {name:10} {text}" for name, text in COMMANDS.items()]
    parser = Parser(prog, "\n".join(lines))
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    rest = "flags of the command, see `COMMAND --help`"
    parser.add_argument("flags", nargs=argparse.REMAINDER, metavar="…", help=rest)
    given = parser.parse_args(arguments)
    prog = f"{prog} {given.command}"
    if given.command == "eval":
        _run("train", ["--mode=eval", *given.flags], prog)
    else:
        _run(given.command, given.flags, prog)


def _run(name: str, arguments: list[str], prog: str) -> None:
    # Imports and tracing make millions of objects that stay. Searching them for garbage as often
    # as Python does by default took a tenth of the time of `predict`.
    gc.set_threshold(50_000, 20, 20)
    command = importlib.import_module(f"dpt_jax.cli.{name}")
    parser = Parser(prog, command.__doc__)
    command.add_arguments(parser)
    traced = "print a traceback for wrong input too"
    parser.add_argument("--debug", action="store_true", help=traced)
    if {"-h", "--help"} & {*arguments}:
        parser.parse_args(["--help"])
    # Libraries that read absl's flags, and whose logs do not belong on the terminal.
    from absl import flags, logging

    flags.FLAGS.mark_as_parsed()  # Grain reads its own
    logging.set_verbosity(logging.FATAL)  # Orbax logs tracebacks of what it raises
    if (of_methods := parser.get_default("of_methods")) is not None:
        from dpt_jax.config import from_command_line

        given, arguments = from_command_line(arguments, of_methods)
        parser.set_defaults(given=given)
    command.run(parser.parse_intermixed_args(arguments))


def guard(command: Callable[[list[str]], None], arguments: list[str]) -> None:
    """Run a command with its arguments, and end the process with the exit code of its error.

    With --debug, wrong input ends in a traceback too.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names need not be Unicode
    sys.unraisablehook = _of_the_main_thread
    try:
        command(arguments)
    except BrokenPipeError:  # the reader, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (Exception, KeyboardInterrupt) as error:
        code, sentence = ending(error)
        jax = sys.modules.get("jax")  # if JAX is not imported, there is one host
        one_of_several = jax is not None and jax.distributed.is_initialized()
        if code == BUG or "--debug" in arguments:
            if not one_of_several:
                raise
            traceback.print_exception(error)
        print(sentence, file=sys.stderr, flush=True)
        if one_of_several:
            _leave(code)
        sys.exit(code)


def _of_the_main_thread(error: Any) -> None:
    """Print an unraisable error, unless it is from a background thread (TensorStore's)."""
    if threading.current_thread() is threading.main_thread():
        sys.__unraisablehook__(error)


def ending(error: BaseException) -> tuple[int, str]:
    """Return the exit code after an error, and the line to print."""
    text = " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "stopped."
    if isinstance(error, UserError):
        return USER_ERROR, f"error: {text}"
    if type(error).__module__.partition(".")[0] in STORES:
        return USER_ERROR, f"error: the bucket cannot be used ({type(error).__name__}: {text})."
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return USER_ERROR, (
            f"error: {place}{error.strerror or text}: check that it exists, that you may use it, "
            "and that there is room."
        )
    if os.environ.get("JAX_PLATFORMS"):
        from dpt_jax.distributed import check_devices

        try:
            check_devices()
        except UserError as reason:
            return ending(reason)
    return BUG, f"{type(error).__name__}: {text}"


def _leave(code: int) -> None:
    """End this process of a run on several hosts. The others end when its heartbeats stop.

    A normal exit would wait for them. Without host 0 they end at once, so host 0 first gives them
    time to print their own errors.
    """
    import jax

    if jax.process_index() == 0:
        time.sleep(1)
    sys.stdout.flush()
    os._exit(code)


def add_config(parser: argparse.ArgumentParser, of_methods: bool = False) -> None:
    """Add --config and --config.KEY, perhaps --config.METHOD.KEY; `run` gets them as `given`."""
    parser.set_defaults(of_methods=of_methods)
    add = parser.add_argument_group("settings").add_argument
    add("--config", metavar="FILE[:DATASET[:PROTOCOL]]", help="a method or a file; default dpt")
    add("--config.KEY", metavar="VALUE", help="any key that `dpt-jax settings` lists")


def add_hosts(parser: argparse.ArgumentParser) -> None:
    """Add --coordinator, --processes, --process and --cluster: one process per host."""
    add = parser.add_argument_group("several hosts (docs/devices.md)").add_argument
    add("--coordinator", metavar="HOST:PORT", help="address of process 0")
    add("--processes", type=int, metavar="N", help="number of processes")
    add("--process", type=int, metavar="I", help="number of this process, from 0")
    add("--cluster", action="store_true", help="take these three from a TPU pod slice")


def add_run(parser: argparse.ArgumentParser, images: bool = False) -> None:
    """Add the run that a command reads, --clip, and perhaps images."""
    add = parser.add_argument
    add("workdir", metavar="W", help="a workdir, or a prompt file of `dpt-jax convert export`")
    if images:
        add("images", nargs="+", metavar="PATH", help="images, or their folders")
    add_clip(parser)
    refuse_workdir(parser)


def refuse_workdir(parser: argparse.ArgumentParser) -> None:
    """Refuse --workdir, which `train` has: here the run is the first argument."""

    def refuse(text: str) -> None:
        raise argparse.ArgumentTypeError(f"{text} is a run: give it first, without --workdir")

    parser.add_argument("--workdir", dest="_", type=refuse, help=argparse.SUPPRESS)


def add_clip(parser: argparse.ArgumentParser) -> None:
    what = "CLIP's weights, if they have moved"
    parser.add_argument("--clip", default="", metavar="WEIGHTS", help=what)


def add_top(parser: argparse.ArgumentParser, default: int, what: str) -> None:
    what = f"{what} ({default})"
    parser.add_argument("--top", type=at_least_one, default=default, metavar="N", help=what)


def at_least_one(text: str) -> int:
    """Return a flag as a positive integer."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def connect_hosts(flags: argparse.Namespace) -> None:
    """Connect the hosts that the flags name, and keep compiled programs for later runs."""
    from dpt_jax import distributed

    distributed.connect(flags.coordinator, flags.processes, flags.process, flags.cluster)
    distributed.keep_compiled()
