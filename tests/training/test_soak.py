"""`make soak`: what the quick tests of faults do, for as long as it takes to believe it."""

import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest

from dpt_jax.clip.pretrained import load_clip
from dpt_jax.training import loop as training
from dpt_jax.training import setup as experiments
from dpt_jax.training.checkpoints import Checkpoints, load_newest
from tests.clip.test_damaged_weights import fuzz_weights
from tests.helpers.commands import command, in_process
from tests.helpers.faults import SETTINGS, damaged, kill_at_random, write
from tests.helpers.golden import SMALL
from tests.storage.test_damaged_checkpoints import PROMPTS, prompts_of, training_of
from tests.training.test_faults import LONG, assert_same_end

pytestmark = pytest.mark.slow
KILLS = 25
DAMAGES = 30  # rounds of five damages to each file
STEPS = 12_000  # eight hours of ViT-B/32 on two CPU cores are 5,900


@pytest.fixture
def tell(capsys):
    """Prints a line past the capture, which keeps thousands of others."""

    def tell(line):
        with capsys.disabled():
            print(f"\n{line}")

    return tell


@pytest.mark.parametrize("workers", [0, 2])
def test_kills_at_random_moments(clip_dir, tmp_path, workers, tell):
    """The run goes on from where it was, and ends as one that nothing happened to."""
    weights = f"--config.clip.weights={clip_dir}"
    in_process("main.py", *SETTINGS, weights, *LONG, f"--workdir={tmp_path / 'whole'}")
    survived = rounds = 0
    while survived < KILLS:
        arguments = [
            weights,
            *LONG,
            f"--workdir={tmp_path / f'run{rounds}'}",
            f"--config.dataset.workers={workers}",
        ]
        survived += kill_at_random(arguments, kills=5, seed=rounds, longest=3)
        in_process("main.py", *SETTINGS, *arguments)
        assert_same_end(tmp_path / f"run{rounds}", tmp_path / "whole")
        rounds += 1
    tell(
        f"{survived} kills in {rounds} runs with {workers} loader processes: "
        "every run ended to the same bits"
    )


def test_damaged_checkpoints(tmp_path, tell):
    workdir = tmp_path / "whole"
    with Checkpoints(workdir, create=True) as checkpoints:
        for step in (1, 2):
            checkpoints.save(
                step, prompts_of(step), {"classnames": ["dog"], "epoch": step}, training_of(step)
            )
        checkpoints.wait()
    newest = workdir / "checkpoints" / "2"
    files = sorted(file for file in newest.rglob("*") if file.is_file())
    generator, recognised, harmless = np.random.default_rng(1), 0, 0
    for _ in range(DAMAGES):
        for file in files:
            whole = file.read_bytes()
            for _, content in damaged(whole, generator):
                write(file, content)
                with Checkpoints(workdir) as checkpoints:
                    found = checkpoints.resume(PROMPTS, training_of(0))
                assert found is not None
                saved, state = found
                jax.tree.map(np.testing.assert_array_equal, saved.prompts, prompts_of(saved.step))
                jax.tree.map(np.testing.assert_array_equal, state, training_of(saved.step))
                recognised, harmless = recognised + (saved.step == 1), harmless + (saved.step == 2)
                if saved.step == 1:
                    shutil.move(workdir / "damaged" / "2", newest)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(whole)
    tell(
        f"{recognised + harmless} damages: {recognised} recognised, "
        f"{harmless} to what is not read, 0 wrong"
    )


def test_damaged_weights(clip_dir, tmp_path, tell):
    refused, read = fuzz_weights(clip_dir, tmp_path / "clip", rounds=60)
    tell(
        f"{refused + read} damaged models: {refused} refused with the file's name, "
        f"{read} read, 0 other exceptions"
    )


@pytest.mark.parametrize(
    "test", ["test_any_setting_is_taken_or_refused", "test_any_folder_is_a_dataset_or_is_refused"]
)
def test_many_settings_and_folders(test):
    """The quick tests with ten times their examples."""
    done = command(
        "-m", "pytest", "-q", "tests/commands/test_wrong_input.py", "-k", test, EXAMPLES_TIMES="10"
    )
    assert "1 passed" in done.stdout


def resources():
    """(resident memory in MB, open files) of this process."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir("/proc/self/fd"))


def test_a_long_run_keeps_its_memory_and_files(clip_dir, tmp_path, monkeypatch, tell):
    """Epochs of one step with metrics and checkpoints: twice eight hours of ViT-B/32 in steps."""
    from configs import dpt

    config = dpt.get_config("folder")
    config.clip.weights, config.dataset.root, config.dataset.shots = (
        str(clip_dir),
        str(SMALL / "images"),
        1,
    )
    config.text_prompt.length, config.train.batch_size, config.train.epochs = 4, 6, STEPS
    config.checkpoint.every_steps = 50
    prepared = experiments.prepare(config, load_clip(str(clip_dir)))
    seen = []

    class Watched(training.MetricWriter):
        def write(self, step, values):
            super().write(step, values)
            if step % (STEPS // 20) == 0:
                seen.append(resources())

    monkeypatch.setattr(training, "MetricWriter", Watched)
    training.train(prepared, tmp_path / "run")
    assert load_newest(tmp_path / "run").step == STEPS
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == STEPS
    memory, files = zip(*seen, strict=True)
    tell(
        f"{STEPS} epochs: {json.dumps([round(x) for x in memory])} MB, "
        f"{json.dumps(files)} open files"
    )
    assert max(memory[10:]) < 1.05 * max(memory[5:10])
    assert max(files[10:]) <= max(files[:10]) + 1  # a checkpoint may just be written
