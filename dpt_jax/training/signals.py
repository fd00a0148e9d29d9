"""How a run is asked to stop: it ends the step, saves, and says so by its exit code."""

import os
import signal
import threading
import types
from typing import Any

import jax
from jax.experimental import multihost_utils

# EX_TEMPFAIL of sysexits.h: stopped and saved, and the same command goes on.
EXIT_CODE = 75


class Stopped(SystemExit):
    """The run was asked to stop, and has saved."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class StopRequest:
    """Within it, SIGTERM and SIGINT are a request, and a second SIGINT ends the process at once.

    On several hosts a SIGTERM to any of them is a request to all, which agree on
    the step to stop after (JAX's preemption service, which has the handler); a
    SIGINT is passed on to it.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        signals = [signal.SIGINT] if jax.process_count() > 1 else [signal.SIGINT, signal.SIGTERM]
        # Python takes signals in the main thread only; another thread leaves them to its caller.
        for number in signals if threading.current_thread() is threading.main_thread() else ():
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: types.FrameType | None) -> None:
        # The next one ends the process, whatever it is doing then.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
        self._asked = True
        name = signal.Signals(number).name
        # Not by print, which the signal may have interrupted.
        os.write(2, f"{name}: stopping after this step (Ctrl-C again stops at once).\n".encode())

    def __bool__(self) -> bool:
        """Return whether this process was asked."""
        return self._asked

    def after(self, step: int) -> bool:
        """Return whether the run stops after this step; all hosts ask after every step."""
        return (
            multihost_utils.reached_preemption_sync_point(step)
            if jax.process_count() > 1
            else self._asked
        )
