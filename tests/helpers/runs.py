"""Untrained runs, and runs in separate processes, also on two hosts."""

import json
import os
import pathlib
import signal
import subprocess

import jax
import numpy as np

from dpt_jax.io import as_path
from dpt_jax.training.checkpoints import Checkpoints, load_newest
from dpt_jax.training.metrics import TIMES, read_metrics
from dpt_jax.training.saved import initial_prompts, training_meta
from dpt_jax.training.setup import Experiment
from dpt_jax.training.workdir import save_config
from tests.helpers.commands import start
from tests.helpers.configs import IMAGES, flags_of
from tests.helpers.object_store import free_port

# Six images per step, two steps per epoch; every sample newly augmented.
EVERY = {"dataset__root": IMAGES, "text_prompt__length": 4, "train__batch_size": 6}
SETTINGS = ["--config=configs/coop.py:folder",
            *flags_of(**EVERY, dataset__shots=-1, train__warmup_epochs=1)]  # fmt: skip


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


OF_HOSTS = flags_of(**EVERY, train__epochs=12, checkpoint__every_steps=4, eval__batch_size=8,
                    eval__save_logits=True)  # fmt: skip


def start_hosts(clip_dir, *arguments, workdir, method="coop", slurm=False, devices=(2, 2)):
    """Start main.py on two hosts, which find each other by flags, or by what srun sets.

    devices: number of devices of each host.
    """
    port = free_port()
    job = {"SLURM_JOB_ID": str(port), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    job |= {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "2"}
    command = ["main.py", f"--config=configs/{method}.py:folder", *OF_HOSTS]
    command += [f"--config.clip.weights={clip_dir}", f"--workdir={workdir}", *arguments]
    processes = []
    for i in (0, 1):
        flags = [f"--coordinator=localhost:{port}", "--processes=2", f"--process={i}"]
        environment = {}
        if slurm:
            flags, environment = [], {**job, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}
        processes.append(start(*command, *flags, devices=devices[i], **environment))
    return processes


def outputs(processes: list[subprocess.Popen], timeout: float = 300) -> list[str]:
    """Return what both have printed, once they have ended."""
    try:
        return [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()


def finish(processes: list[subprocess.Popen]) -> list[str]:
    """Return what both have printed, once they have succeeded."""
    printed = outputs(processes)
    assert [process.returncode for process in processes] == [0, 0], printed
    return printed


def save_run(
    experiment: Experiment, workdir: pathlib.Path, step: int = 1, noise: float = 0.0
) -> pathlib.Path:
    """Write a run that ends with its first prompts, moved by some noise."""
    prompts = jax.tree.map(lambda x: x + np.float32(noise), initial_prompts(experiment))
    save_config(experiment.config, workdir)
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(step, prompts, {**training_meta(experiment), "epoch": 1})
        checkpoints.wait()
    return workdir


def results_of(workdir: pathlib.Path) -> dict:
    """Return what results.json of a run has."""
    return json.loads((workdir / "results.json").read_text())
