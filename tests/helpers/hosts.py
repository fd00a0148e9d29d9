"""Two processes of one run on loopback, and how they end."""

import socket
import subprocess
import sys
import threading
import time

from tests.helpers.commands import ROOT, simulated
from tests.helpers.forks import Fork
from tests.helpers.golden import SMALL

SETTINGS = [
    f"--config.dataset.root={SMALL / 'images'}",
    "--config.train.epochs=12",
    "--config.text_prompt.length=4",
    "--config.train.batch_size=6",
    "--config.checkpoint.every_steps=4",
    "--config.eval.batch_size=8",
    "--config.eval.save_logits=True",
]


def start_hosts(
    clip_dir, workdir, *arguments, method="dpt", slurm=False, main="main.py", **options
):
    """Start main.py, or a file in its place, on two hosts.  options: those of `start`."""
    settings = [f"--config=configs/{method}.py:folder", *SETTINGS]
    settings += [f"--config.clip.weights={clip_dir}", f"--workdir={workdir}", *arguments]
    return start([main, *settings], slurm=slurm, **options)


def start(command, slurm=False, devices=(2, 2), scripts=(None, None), variables=({}, {})):
    """Start two processes of one run, which find each other by flags, or by what srun sets.

    devices: how many each has. scripts: Python code that one runs in place of the command's file.
    variables: of the environment of each.
    """
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    job = {
        "SLURM_JOB_ID": str(port),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_NODES": "1",
    }
    job |= {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}
    processes = []
    for i in (0, 1):
        named = [f"--coordinator=localhost:{port}", "--processes=2", f"--process={i}"]
        scheduled = {**job, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}
        arguments = [*command, *([] if slurm else named)]
        env = {**simulated(devices[i]), **(scheduled if slurm else {}), **variables[i]}
        processes.append(_process(scripts[i], arguments, env))
    return processes


def _process(script, arguments, env):
    if script is None:
        return Fork(arguments, cwd=ROOT, env=env)
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments[1:]],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(processes):
    """The output of both, once they have ended well."""
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    return outputs


class Watched:
    """Two processes whose lines are read as they come."""

    def __init__(self, processes):
        self.processes, self.lines = processes, ([], [])
        self._readers = [threading.Thread(target=self._read, args=(i,)) for i in (0, 1)]
        for reader in self._readers:
            reader.start()

    def _read(self, i):
        for line in self.processes[i].stdout:
            self.lines[i].append((time.monotonic(), line))

    def when(self, text, i=None, timeout=240):
        """The moment at which a line with this text came from either, or from process i."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            found = [
                moment
                for j in ((0, 1) if i is None else (i,))
                for moment, line in list(self.lines[j])
                if text in line
            ]
            if found:
                return min(found)
            if all(process.poll() is not None for process in self.processes):
                break
            time.sleep(0.02)
        raise AssertionError(f"{text!r} did not come: {self.outputs()}")

    def codes(self, timeout=240):
        """Both exit codes, once they have ended."""
        try:
            return [process.wait(timeout) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
            for reader in self._readers:
                reader.join()

    def outputs(self):
        return ["".join(line for _, line in lines) for lines in self.lines]
