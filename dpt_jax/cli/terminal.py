"""How a command ends: one sentence and exit code 2 for wrong input, a traceback for a bug."""

import io
import os
import sys
from collections.abc import Callable

from dpt_jax.errors import UserError
from dpt_jax.runtime import failures

_debug = False


def keep_tracebacks(wanted: bool) -> None:
    """Say whether wrong input ends in a traceback too (--debug)."""
    global _debug
    _debug = wanted


def guard(command: Callable[[], None]) -> None:
    """Run a command, and end the process, and those of other hosts, as its errors ask for."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names need not be Unicode
    try:
        command()
    except BrokenPipeError:  # the reader, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (Exception, KeyboardInterrupt) as error:
        _end_other_hosts(error)
        code, line = failures.ending(error)
        if code == failures.BUG or (_debug and isinstance(error, UserError)):
            raise
        print(line, file=sys.stderr, flush=True)
        sys.exit(code)


def _end_other_hosts(error: BaseException) -> None:
    """End all hosts as this one ends, which does not return then; with one host do nothing."""
    if "jax" in sys.modules:  # otherwise there is no other host yet
        failures.end_all(error)
