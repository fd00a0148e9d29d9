"""`make soak`: many more kills and damages than in the quick tests."""

import os
import pathlib
import random
import signal
import time

import pytest

from dpt_jax.clip.pretrained import load_clip
from dpt_jax.training import loop
from dpt_jax.training import setup as experiments
from dpt_jax.training.checkpoints import load_newest
from tests.helpers.commands import in_process
from tests.helpers.configs import small_config
from tests.helpers.faults import SETTINGS, Run, assert_same_end
from tests.training.test_resume import LONG

pytestmark = pytest.mark.slow
STEPS = 12_000  # eight hours of ViT-B/32 on two CPU cores are 5,900


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_kills_at_random_moments(clip_dir, tmp_path, bucket, place):
    """Of training, checkpoints and evaluation; every run ends with the same bits."""
    settings = [f"--config.clip.weights={clip_dir}", *LONG]
    whole, moments, killed = tmp_path / "whole", random.Random(0), 0
    in_process("main.py", *SETTINGS, *settings, f"--workdir={whole}")
    for i in range(5):
        workdir = f"{bucket}/run{i}" if place == "bucket" else tmp_path / f"run{i}"
        arguments = [*settings, f"--workdir={workdir}", f"--config.dataset.workers={i % 2 * 2}"]
        for _ in range(4):
            run = Run(*arguments)
            run.read_until("Training coop")
            time.sleep(moments.uniform(0, 3))
            killed += run.process.poll() is None
            run.send(signal.SIGKILL)
            run.end()
        in_process("main.py", *SETTINGS, *arguments)
        assert_same_end(workdir, whole)
    assert killed > 10


def resources():
    """(resident memory in MB, open files) of this process."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir("/proc/self/fd"))


def test_a_long_run_keeps_its_memory_and_files(clip_dir, tmp_path, monkeypatch):
    """Epochs of one step with metrics and checkpoints: the steps of sixteen hours of ViT-B/32."""
    config = small_config(clip_dir, dataset__shots=1, text_prompt__length=4, train__batch_size=6,
                          train__epochs=STEPS, checkpoint__every_steps=50)  # fmt: skip
    seen = []

    class Watched(loop.MetricWriter):
        def write(self, step, values):
            super().write(step, values)
            if step % (STEPS // 20) == 0:
                seen.append(resources())

    monkeypatch.setattr(loop, "MetricWriter", Watched)
    loop.train(experiments.prepare(config, load_clip(str(clip_dir))), tmp_path / "run")
    assert load_newest(tmp_path / "run").step == STEPS
    memory, files = zip(*seen, strict=True)
    assert max(memory[10:]) < 1.05 * max(memory[5:10])
    assert max(files[10:]) <= max(files[:10]) + 1  # a checkpoint may just be written
