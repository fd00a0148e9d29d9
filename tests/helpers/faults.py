"""What the tests of faults and the soak share: runs that are hit, and bytes that are damaged."""

import os
import pathlib
import random
import signal
import time
from collections.abc import Iterator

import numpy as np

from tests.helpers.commands import ROOT, simulated
from tests.helpers.forks import Fork
from tests.helpers.golden import SMALL


def settings_of(method: str) -> list[str]:
    """Six images a step, two steps an epoch; every sample newly augmented."""
    return [
        f"--config=configs/{method}.py:folder",
        f"--config.dataset.root={SMALL / 'images'}",
        "--config.dataset.shots=-1",
        "--config.text_prompt.length=4",
        "--config.train.batch_size=6",
        "--config.train.warmup_epochs=1",
    ]


# What happens to a run is the same for all methods, and this one starts first.
SETTINGS = settings_of("coop")


class Run:
    """main.py in a process of its own group, whose output is read as it comes."""

    def __init__(self, *arguments: str, main: str = "main.py", **environment: str) -> None:
        """main: the file that is run."""
        self.output = ""
        env = {**simulated(devices=1), **environment}
        self.process = Fork([main, *SETTINGS, *arguments], cwd=ROOT, env=env)

    def read_until(self, text: str) -> None:
        """Reads on until a line with this text has come, or the process has ended."""
        for line in self.process.stdout:
            self.output += line
            if text in line:
                return

    def send(self, number: signal.Signals) -> None:
        """A signal to the whole group, as Ctrl-C and schedulers send it."""
        os.killpg(self.process.pid, number)

    def end(self, timeout: float = 120) -> int:
        """Waits for the end; the exit code."""
        self.output += self.process.communicate(timeout=timeout)[0]
        return self.process.wait()


def kill_at_random(arguments: list[str], kills: int, seed: int, longest: float) -> int:
    """Starts a run again and again and kills it at a random moment of the training; how often it
    was killed before it
    was finished."""
    moments, survived = random.Random(seed), 0
    for _ in range(kills):
        run = Run(*arguments)
        run.read_until("Training coop")
        time.sleep(moments.uniform(0, longest))
        if run.process.poll() is None:
            survived += 1
        run.send(signal.SIGKILL)
        run.end()
    return survived


def damaged(whole: bytes, generator: np.random.Generator) -> Iterator[tuple[str, bytes | None]]:
    """What can have become of a file: it is gone, empty, cut, or has one bit or a block other than
    it had.
    """
    yield "gone", None
    yield "empty", b""
    yield "cut", whole[: int(generator.integers(max(len(whole), 1)))]
    if whole:
        flipped = bytearray(whole)
        flipped[int(generator.integers(len(whole)))] ^= 1 << int(generator.integers(8))
        yield "bit", bytes(flipped)
        start = int(generator.integers(len(whole)))
        block = bytearray(whole)
        length = min(512, len(whole) - start)
        block[start : start + length] = bytes(length)
        yield "block", bytes(block)


def write(file: pathlib.Path, content: bytes | None) -> None:
    """The content in place of the file's, or no file."""
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
