"""Runs that are stopped or killed, and a comparison of their results."""

import os
import pathlib
import signal

import jax
import numpy as np

from dpt_jax.io import as_path
from dpt_jax.training.checkpoints import load_newest
from dpt_jax.training.metrics import TIMES, read_metrics
from tests.helpers.commands import start
from tests.helpers.golden import IMAGES

# Six images per step, two steps per epoch; every sample newly augmented.
SETTINGS = [
    "--config=configs/coop.py:folder",
    f"--config.dataset.root={IMAGES}",
    "--config.dataset.shots=-1",
    "--config.text_prompt.length=4",
    "--config.train.batch_size=6",
    "--config.train.warmup_epochs=1",
]


class Run:
    """main.py in a process of its own, whose output is read as it comes."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.output = ""
        self.process = start("main.py", *SETTINGS, *arguments, **environment)

    def read_until(self, text: str) -> None:
        """Read until a line with this text has come, or the process has ended."""
        for line in self.process.stdout or ():
            self.output += line
            if text in line:
                return

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the whole process group, as Ctrl-C and schedulers do."""
        os.killpg(self.process.pid, number)

    def end(self, timeout: float = 120) -> int:
        """Wait for the end; return the exit code."""
        self.output += self.process.communicate(timeout=timeout)[0]
        return self.process.returncode


def assert_same_end(workdir: str | pathlib.Path, whole: pathlib.Path) -> None:
    """Assert that two runs have the same prompts, results and metrics, to the last bit."""
    there = as_path(workdir)
    found, expected = load_newest(there).prompts, load_newest(whole).prompts
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert (there / "results.json").read_bytes() == (whole / "results.json").read_bytes()
    records = [
        [{**record, **dict.fromkeys(TIMES, 0)} for record in read_metrics(as_path(run))]
        for run in (there, whole)
    ]
    assert records[0] == records[1]
