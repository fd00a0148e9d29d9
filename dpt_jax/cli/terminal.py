"""How a command ends: one sentence and exit code 2 for wrong input, a traceback for a bug."""

import errno
import io
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from dpt_jax.errors import BUG, INTERRUPTED, USER_ERROR, UserError

NO_BUCKET = re.compile(r"\bb/([^/]+)/o$")  # the end of the URL that Cloud Storage does not find
STORES = ("gcsfs", "google", "aiohttp")  # packages whose errors are those of a bucket


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
        one_of_several = _is_one_of_several()
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
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "stopped."
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return USER_ERROR, f"error: {text}"
    if isinstance(error, FileNotFoundError) and (bucket := NO_BUCKET.search(text)):
        return USER_ERROR, f"error: there is no bucket gs://{bucket[1]}, or you cannot read it."
    if type(error).__module__.partition(".")[0] in STORES:
        return USER_ERROR, f"error: the bucket cannot be used ({type(error).__name__}: {text})."
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        remedy = "check that it exists, that you may use it, and that there is room"
        if error.errno == errno.EMFILE:
            remedy = "raise the limit with `ulimit -n`"
        return USER_ERROR, f"error: {place}{error.strerror or text}: {remedy}."
    if os.environ.get("JAX_PLATFORMS"):
        from dpt_jax.distributed import check_devices

        try:
            check_devices()
        except UserError as reason:
            return ending(reason)
    return BUG, f"{type(error).__name__}: {text}"


def _is_one_of_several() -> bool:
    if "jax" not in sys.modules:  # not imported: no other host yet
        return False
    import jax

    return jax.distributed.is_initialized()


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
