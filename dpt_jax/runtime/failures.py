"""An error on one of several hosts: all of them end, with its sentence and its exit code.

A host that fails publishes its sentence in the key-value store of JAX's coordination service. On
every host a thread looks there, since the main one may wait in a collective that the failed host
will never join, and ends the process without JAX's own barrier, which would wait for minutes.

In a sweep a failed run must not end the others. There hosts `agree` before each collective phase,
and a `run` that failed on one of them is over on all, which go on to the next together.

With one host all of this does nothing.
"""

import contextlib
import errno
import json
import os
import platform
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

from dpt_jax.errors import UserError

USER_ERROR, BUG, INTERRUPTED = 2, 1, 130
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_TO_HEAR = 5.0  # how long a host that ends waits until the others know of it
# How long the hosts of a failed run wait for each other: for those that take some more steps.
SECONDS_TO_MEET = 120.0
END, RUNS = "dpt_jax/end", "dpt_jax/runs"


class Ending(NamedTuple):
    """How a process ends: its exit code, and a line for the person at the terminal."""

    code: int
    line: str


class FailedElsewhereError(UserError):
    """A run has failed on another host."""


class _Position:
    """Where this host is: in which run, and how often it has agreed there."""

    run = 0
    agreed = 0
    within = False  # a run of a sweep, whose failure ends no process


_position = _Position()
_leaving = threading.Lock()


def ending(error: BaseException) -> Ending:
    """Return how a process ends after an error.  A bug has a traceback besides."""
    if isinstance(error, KeyboardInterrupt):
        return Ending(INTERRUPTED, "stopped.")
    if isinstance(error, UserError):
        return Ending(USER_ERROR, f"error: {' '.join(str(error).split())}")
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        what = error.filename or "a file"
        reason = f"error: {what} cannot be written ({error.strerror}): make room, and try again."
        return Ending(USER_ERROR, reason)
    return Ending(BUG, f"{type(error).__name__}: {error}")


def watch() -> None:
    """Begin to look for an error of another host.  Called once, after the hosts are connected."""
    client = _client()
    if client is not None:
        threading.Thread(target=_look, args=(client,), daemon=True, name="failures").start()


def end_all(error: BaseException) -> None:
    """End the processes of all hosts as after this error; return if there is one host."""
    client = _client()
    if client is None:
        return
    _leaving.acquire()  # a thread that comes here while another one leaves waits for the end
    try:
        known = _published(client)
    except Exception:  # the service has ended, and nobody can be reached
        return
    if known:  # this error may come of the other host's end
        _leave(client)
    own = ending(error)
    if own.code == BUG:
        traceback.print_exception(error)
    named = own.line.removeprefix("error: ")
    where = f"host {_this_host()} of {_hosts()} ({platform.node()})"
    _set_once(client, END, json.dumps([own.code, f"error: {where}: {named}"]))
    _leave(client)


@contextlib.contextmanager
def fatal() -> Iterator[None]:
    """End all hosts at once after an error within, where the others already wait for this one."""
    try:
        yield
    except Exception as error:
        end_all(error)
        raise


@contextlib.contextmanager
def run() -> Iterator[None]:
    """One run of a sweep: if it fails on a host it is over on all, and they leave it together.

    Raise FailedElsewhereError on the hosts where it did not fail. If they do not all come here,
    one of them waits in a collective, and all end.
    """
    client = _client()
    if client is None:
        yield
        return
    failed: Exception | None = None
    _position.within = True
    try:
        yield
    except FailedElsewhereError:
        pass
    except Exception as error:
        failed = error
        _set_once(client, f"{_run_key()}/failed", json.dumps(_sentence(error)))
    sentence = _meet(client, f"{_run_key()}/over", SECONDS_TO_MEET)
    _position.run, _position.agreed, _position.within = _position.run + 1, 0, False
    if failed is not None:
        raise failed
    if sentence:
        raise FailedElsewhereError(sentence)


def hold(error: Exception) -> None:
    """Return if the error may wait until the hosts `agree`: in a `run`.  Else end all, or raise it.

    What fails within the steps of a training needs this, since their results are the only
    answers that the other hosts wait for.
    """
    if _client() is None or not _position.within:
        end_all(error)
        raise error


def agree(failed: Exception | None = None) -> None:
    """Return when all hosts are here.  Raise `failed`, or what has failed on another host.

    All hosts call it in the same places, before they need each other.
    """
    client = _client()
    if client is None or failed is not None:
        if failed is not None:
            raise failed
        return
    key = f"{_run_key()}/agreed/{_position.agreed}"
    _position.agreed += 1
    _arrive(client, key)
    while not _has(client, key):
        if sentence := _failed_elsewhere(client):
            raise FailedElsewhereError(sentence)
        time.sleep(0.002)
    if _this_host() == 0 and _position.agreed > 1:  # all have left the place before this one
        client.key_value_delete(f"{_run_key()}/agreed/{_position.agreed - 2}")


def _run_key() -> str:
    return f"{RUNS}/{_position.run}"


def _sentence(error: Exception) -> str:
    return f"host {_this_host()}: {ending(error).line.removeprefix('error: ')}"


def _failed_elsewhere(client: Any) -> str:
    found = dict(client.key_value_dir_get(f"{_run_key()}/failed"))
    return json.loads(next(iter(found.values()))) if found else ""


def _arrive(client: Any, key: str) -> None:
    """Count this host; the last one says that all are there."""
    if client.key_value_increment(f"{key}/hosts", 1) == _hosts():
        client.key_value_set(f"{key}/all", "1")


def _has(client: Any, key: str) -> bool:
    return any(name.endswith("/all") for name, _ in client.key_value_dir_get(key))


def _meet(client: Any, key: str, seconds: float) -> str:
    """Wait until all hosts are at the end of the run; return what failed in it, or ""."""
    _arrive(client, key)
    deadline = None
    while not _has(client, key):
        if sentence := _failed_elsewhere(client):
            deadline = deadline or time.monotonic() + seconds
            if time.monotonic() > deadline:
                end_all(UserError(f"{sentence} Another host could not leave that run."))
        time.sleep(0.01)
    return _failed_elsewhere(client)


def _look(client: Any) -> None:
    """Look for an error of another host until this process ends."""
    while True:
        time.sleep(SECONDS_BETWEEN_LOOKS)
        try:
            found = _published(client)
        except Exception:  # the service has ended, and with it this process
            return
        if found:
            _leaving.acquire()
            _leave(client)


def _published(client: Any) -> str:
    found = client.key_value_dir_get(END)
    return found[0][1] if found else ""


def _leave(client: Any) -> NoReturn:
    """Print the published sentence and end this process, once all hosts know of it.

    By os._exit: what Python does at exit waits for the other hosts.
    """
    code, line = json.loads(_published(client))
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    print(line, file=sys.stderr, flush=True)
    # Nothing comes after it: what the main thread still says, or that a host that has gone breaks
    # the connections of the others, is not the reason.
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    deadline = time.monotonic() + SECONDS_TO_HEAR
    with contextlib.suppress(Exception):
        _arrive(client, "dpt_jax/ending")
        while not _has(client, "dpt_jax/ending") and time.monotonic() < deadline:
            time.sleep(0.05)
    if _this_host() == 0:
        time.sleep(0.5)  # the store is on host 0, and the others have to read there that all know
    os._exit(code)


def _set_once(client: Any, key: str, value: str) -> None:
    """Publish a value unless another host has, which then counts."""
    with contextlib.suppress(Exception):  # the client's own type, for a key that exists
        client.key_value_set(f"{key}/first", value)


def _client() -> Any:
    """Return the client of JAX's coordination service, or None with one host.

    JAX has no public name for its key-value store. Orbax uses this one too.
    """
    return _state().client if _hosts() > 1 else None


def _hosts() -> int:
    return _state().num_processes or 1


def _this_host() -> int:
    return _state().process_id or 0


def _state() -> Any:
    # Not jax.process_count(), which would start the devices where an error came before.
    from jax._src import distributed

    return distributed.global_state
