"""Two processes of one run on loopback."""

import subprocess

from tests.helpers.commands import start
from tests.helpers.golden import IMAGES
from tests.helpers.object_store import free_port

SETTINGS = [
    f"--config.dataset.root={IMAGES}",
    "--config.train.epochs=12",
    "--config.text_prompt.length=4",
    "--config.train.batch_size=6",
    "--config.checkpoint.every_steps=4",
    "--config.eval.batch_size=8",
    "--config.eval.save_logits=True",
]


def start_hosts(clip_dir, *arguments, workdir, method="coop", slurm=False, devices=(2, 2)):
    """Start main.py on two hosts, which find each other by flags, or by what srun sets.

    devices: number of devices of each host.
    """
    port = free_port()
    job = {"SLURM_JOB_ID": str(port), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    job |= {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "2"}
    command = ["main.py", f"--config=configs/{method}.py:folder", *SETTINGS]
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
