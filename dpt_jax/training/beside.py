"""The runs of a sweep beside each other: each in a process with devices of its own, one console.

The processes are workers, which get the number of one run after the other on their standard input,
and answer with a line when it has ended. A worker that dies takes one run with it. Between this
process and others that run the same sweep, here or elsewhere, there are only the locks of the runs.
"""

import contextlib
import io
import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax

from dpt_jax.runtime.slots import Variables
from dpt_jax.training.grid import Run
from dpt_jax.training.signals import EXIT_CODE
from dpt_jax.training.sweep import Ended, Outcome, attempt
from dpt_jax.training.time_left import TimeLeft

ANSWER = "\x1e"  # begins the line by which a worker says how a run has ended
Worker = subprocess.Popen[str]


def sweep_beside(
    first: Sequence[Run],
    others: Sequence[Run],
    command: Sequence[str],
    slots: Sequence[Variables],
    time_left: TimeLeft,
) -> Outcome:
    """Execute the runs, as many at once as there are slots: the first ones, then the others.

    command: that of a worker which `serve`s these runs in this order. slots: the variables by which
    each sees its own devices. SIGINT and SIGTERM go to all workers, which save and end; raise
    SystemExit with their exit code then.
    """
    # Nothing is computed here, and a process that starts an accelerator has it alone.
    jax.config.update("jax_platforms", "cpu")
    return _Slots(first, others, command, slots, time_left).run()


class _Slots:
    """Workers, what each is at, and what is left to do."""

    def __init__(
        self,
        first: Sequence[Run],
        others: Sequence[Run],
        command: Sequence[str],
        slots: Sequence[Variables],
        time_left: TimeLeft,
    ) -> None:
        self._runs, self._first = [*first, *others], len(first)
        self._command, self._slots = list(command), slots
        self._time_left = time_left
        self._lock = threading.Lock()
        self._waiting = set(range(len(self._runs)))
        self._datasets: dict[int, str] = {}  # by slot
        self._workers: dict[int, Worker] = {}  # by slot
        self._codes: list[int] = []  # of workers that have ended
        self._signal = 0
        self._outcome = Outcome([], [])

    def run(self) -> Outcome:
        """Return what was not finished, once all runs have ended."""
        numbers = range(1, len(self._slots) + 1)
        with self._passing_signals_on(), ThreadPoolExecutor(len(numbers)) as threads:
            list(threads.map(self._work, numbers))
        if self._signal:
            # As one process ends: 75 where a run was saved, or as killed by the signal.
            raise SystemExit(EXIT_CODE if EXIT_CODE in self._codes else 128 + self._signal)
        return self._outcome

    def _work(self, slot: int) -> None:
        """Have one run after the other done in a slot."""
        while (number := self._take(slot)) is not None:
            if slot not in self._workers:
                self._start(slot)
            run = self._runs[number]
            self._say(slot, f"run {number + 1} of {len(self._runs)}{self._left(run)}: {run}")
            began = time.monotonic()
            ended = self._ask(slot, number)
            with self._lock:
                self._outcome.add(run, ended)
                if ended.made:
                    self._time_left.ran(run, time.monotonic() - began)
        if slot in self._workers:
            self._end(slot)

    def _left(self, run: Run) -> str:
        """Return how long a run and those that wait will take, as far as that is known."""
        with self._lock:
            ahead = [run, *(self._runs[number] for number in self._waiting)]
            return self._time_left.words(ahead, len(self._slots))

    def _take(self, slot: int) -> int | None:
        """Return the number of the next run of a slot, None where there is none.

        A slot goes on with its dataset, whose images and programs it has. Else it takes the dataset
        that the fewest are at.
        """
        with self._lock:
            last = self._datasets.pop(slot, None)
            if self._signal or not self._waiting:
                return None
            busy = list(self._datasets.values())

            def order(number: int) -> tuple[bool, bool, int, int]:
                dataset = self._runs[number].dataset
                return number >= self._first, dataset != last, busy.count(dataset), number

            number = min(self._waiting, key=order)
            self._waiting.remove(number)
            self._datasets[slot] = self._runs[number].dataset
            return number

    def _start(self, slot: int) -> None:
        """Start a worker, in a session of its own: it gets the signals that are passed on."""
        self._workers[slot] = subprocess.Popen(
            self._command,
            env={**os.environ, **self._slots[slot - 1]},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="backslashreplace",
            start_new_session=True,
        )
        if self._signal:  # it came meanwhile
            self._workers[slot].send_signal(self._signal)

    def _ask(self, slot: int, number: int) -> Ended:
        """Return how the worker of a slot has ended a run, and say what it says until then."""
        worker, said = self._workers[slot], "nothing"
        assert worker.stdin and worker.stdout
        with contextlib.suppress(BrokenPipeError):  # it has died, and is found out below
            worker.stdin.write(f"{number}\n")
            worker.stdin.flush()
        for line in worker.stdout:
            text, is_answer, answer = line.rstrip("\n").partition(ANSWER)
            if text:
                self._say(slot, text)
                said = text.strip()
            if is_answer:
                return Ended(**json.loads(answer))
        how = _in_words(self._end(slot))
        reason = f"its process {how}; the last that it said: {said}"
        if not self._signal:
            self._say(slot, f"  failed: {reason}")
        return Ended(failed=reason)

    def _end(self, slot: int) -> int:
        """Return the exit code of a worker, which ends when nothing more is asked of it."""
        worker = self._workers[slot]
        rest, _ = worker.communicate()
        for line in rest.splitlines():
            self._say(slot, line)
        del self._workers[slot]
        self._codes.append(worker.returncode)
        return worker.returncode

    def _say(self, slot: int, line: str) -> None:
        with self._lock:
            print(f"[{slot}] {line}", flush=True)

    @contextlib.contextmanager
    def _passing_signals_on(self) -> Iterator[None]:
        def pass_on(number: int, _: object) -> None:
            self._signal = number
            for worker in list(self._workers.values()):
                worker.send_signal(number)

        asked = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, pass_on) for number in asked}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _in_words(code: int) -> str:
    """Return how a process has ended."""
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    memory = ", as the system does when memory is short" if -code == signal.SIGKILL else ""
    return f"was killed by {name}{memory}"


def serve(planned: Sequence[Run], execute: Callable[[Run], int]) -> None:
    """Be a worker: execute the runs whose numbers come on standard input, until that ends.

    If it ends in the middle of a run, whoever asked has died: then end as after a SIGTERM.
    """
    asked: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    busy = threading.Event()

    def listen() -> None:
        # Not sys.stdin, whose lock a thread that waits for a line would hold at exit.
        for line in io.FileIO(0, closefd=False):
            busy.set()
            asked.put(int(line))
        asked.put(None)
        if busy.is_set():
            for output in (1, 2):  # nobody reads them any more
                os.dup2(os.open(os.devnull, os.O_WRONLY), output)
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=listen, daemon=True, name="runs").start()
    while (number := asked.get()) is not None:
        ended = attempt(planned[number], execute)
        busy.clear()
        print(ANSWER + json.dumps(ended._asdict()), flush=True)
