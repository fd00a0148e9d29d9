"""How a command ends: one sentence and exit code 2 for wrong input, a traceback for a bug."""

import errno
import io
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from dpt_jax.errors import UserError

INTERRUPTED = 130  # Ctrl-C while there is nothing to save
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_debug = False


def keep_tracebacks(wanted: bool) -> None:
    """Say whether wrong input ends in a traceback too (--debug)."""
    global _debug
    _debug = wanted


def guard(command: Callable[[], None]) -> None:
    """Run a command, and end the process as its errors ask for."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names need not be Unicode
    try:
        command()
    except UserError as reason:
        if _debug:
            raise
        _stop(reason)
    except BrokenPipeError:  # the reader, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped.", file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED)
    except OSError as reason:
        if reason.errno not in NO_ROOM or _debug:
            raise
        file = reason.filename or "a file"
        _stop(f"{file} cannot be written ({reason.strerror}): make room, and try again.")


def _stop(reason: object) -> NoReturn:
    print(f"error: {' '.join(str(reason).split())}", file=sys.stderr, flush=True)
    sys.exit(2)
