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
        # Elsewhere than in the main thread Python takes no signals, and whoever started the thread
        # must.
        for number in signals if threading.current_thread() is threading.main_thread() else ():
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: types.FrameType | None) -> None:
        # Whatever the process is doing then, the next one ends it.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
        self._asked = True
        # Not by print, which a signal may have come in the middle of.
        os.write(
            2,
            f"{signal.Signals(number).name}: stopping after this step "
            "(Ctrl-C again stops at once).\n".encode(),
        )

    def __bool__(self) -> bool:
        """Whether this process was asked."""
        return self._asked

    def after(self, step: int) -> bool:
        """Whether the run stops after this step, which all hosts ask for every step."""
        return (
            multihost_utils.reached_preemption_sync_point(step)
            if jax.process_count() > 1
            else self._asked
        )
