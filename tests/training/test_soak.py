"""`make soak`: more kills and more damage than in the quick tests, a long run, random histories.

Every accuracy that a history shows is true, and the reported settings are those of the training.
"""

import functools
import json
import os
import pathlib
import random
import re
import shutil
import signal
import time

import pytest

from configs import vlp
from dpt_jax.clip.pretrained import load_clip
from dpt_jax.config import shots_in_words
from dpt_jax.errors import UserError
from dpt_jax.evaluation import evaluate as evaluation
from dpt_jax.evaluation.results import RESULTS_FILE
from dpt_jax.logging import Progress
from dpt_jax.report import one_run
from dpt_jax.training import loop
from dpt_jax.training import setup as experiments
from dpt_jax.training.checkpoints import FOLDER, Checkpoints, digest, load_newest, steps_of
from dpt_jax.training.state import EXIT_CODE
from tests.helpers.commands import in_process
from tests.helpers.configs import flags_of, small_config, small_flags
from tests.helpers.runs import SETTINGS, Run, assert_same_end
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
            if run.process.poll() is None:  # else it has finished
                run.send(signal.SIGKILL)
                killed += 1
            run.end()
        in_process("main.py", *SETTINGS, *arguments)
        assert_same_end(workdir, whole)
    assert killed > 10


def resources():
    """(resident memory in MB, open files) of this process."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir("/proc/self/fd"))


def test_a_long_run_keeps_its_memory_and_files(clip_dir, tmp_path):
    """Epochs of one step with metrics and checkpoints: the steps of sixteen hours of ViT-B/32."""
    config = small_config(clip_dir, dataset__shots=1, text_prompt__length=4, train__batch_size=6,
                          train__epochs=STEPS, checkpoint__every_steps=50)  # fmt: skip
    seen = []

    def watch(values):
        if values["epoch"] % (STEPS // 20) == 0:
            seen.append(resources())

    experiment = experiments.prepare(config, load_clip(str(clip_dir)))
    loop.train(experiment, tmp_path / "run", callbacks=[watch])
    assert load_newest(tmp_path / "run").step == STEPS
    memory, files = zip(*seen, strict=True)
    assert max(memory[10:]) < 1.05 * max(memory[5:10])
    assert max(files[10:]) <= max(files[:10]) + 1  # a checkpoint may just be written


SHOWN = re.compile(r"(\d+\.\d) % of (\d+) test images right")
SOAK = range(100, 300)
EVENTS = 8
SIZES = {"text_prompt__length": 2, "visual_prompt__length": 2}
# Settings of a training, which an evaluation cannot change.
OPTIONS = {
    "train.epochs": (2, 1, 3),
    "seed": (1, 2),
    "dataset.shots": (-1, 1, 2),
    "train.text_lr": (0.3, 0.2),
    "loss.alpha": (0.3, 0.1),
}
# What an evaluation may choose.
OF_EVALUATION = {
    "dataset.classes": ("all", "base"),
    "dataset.template": ("a photo of a {}.", "{}"),
    "eval.batch_size": (100, 5),
}
# The folder of the results on each choice of classes.
PLACES = {"all": ".", "base": "on/folder-base"}


class History:
    """A run and random commands on it, with a check of all that is shown after each."""

    def __init__(self, seed, folder, clip_dir, monkeypatch):
        self.random, self.monkeypatch = random.Random(seed), monkeypatch
        self.run, self.clip_dir, self.done = folder / "run", clip_dir, []
        self.shown, self.accuracies = 0, {}
        self.options = {key: values[0] for key, values in OPTIONS.items()}
        self.trained = {}  # digest of prompts -> OPTIONS
        save = Checkpoints.save

        def noted(checkpoints, step, prompts, *rest):
            self.trained[digest(prompts)] = dict(self.options)
            save(checkpoints, step, prompts, *rest)

        monkeypatch.setattr(Checkpoints, "save", noted)

    def take(self):
        """Run a random action, and check everything shown afterwards."""
        choices = [self.train, self.train, self.train_and_stop]
        if (self.run / FOLDER).exists():
            choices += [self.evaluate, self.evaluate, self.lose_the_newest]
        chosen = self.random.choice(choices)
        self.done.append(chosen.__name__)
        chosen()
        for classes, place in PLACES.items():
            if (self.run / place / RESULTS_FILE).exists():
                self.check(classes, self.run / place)

    def train(self):
        for key, values in OPTIONS.items():
            if self.random.random() < 0.25:
                self.options[key] = self.random.choice(values)
        flags = flags_of(**self.options) + self.random.choice([[], ["--allow_changes"]])
        self.done[-1] += f" {' '.join(flags)}"
        flags += [*small_flags(self.clip_dir, **SIZES), "--config.train.warmup_epochs=0"]
        flags += ["--config.train.visual_lr=0.3", f"--workdir={self.run}"]
        done = in_process("main.py", "--config=vlp:folder", *flags, check=False)
        assert done.returncode in (0, 2, EXIT_CODE), done.stderr
        if done.returncode == 0:
            self.compare(done.stdout)

    def train_and_stop(self):
        """With a signal in the first epoch that it trains."""
        with self.monkeypatch.context() as patch:
            patch.setattr(Progress, "report", lambda *_: signal.raise_signal(signal.SIGTERM))
            self.train()

    def evaluate(self):
        """Perhaps with settings other than the training's, which are refused."""
        own = self.trained[load_newest(self.run).digest]
        asked = {
            key: self.random.choice(values)
            for key, values in {**OPTIONS, **OF_EVALUATION}.items()
            if self.random.random() < 0.2
        }
        self.done[-1] += f" {asked}"
        flags = ["--mode=eval", f"--workdir={self.run}", *flags_of(**asked)]
        done = in_process("main.py", *flags, check=False)
        if any(own.get(key, value) != value for key, value in asked.items()):
            assert done.returncode == 2, self.done
            return
        assert done.returncode == 0, done.stderr
        classes = asked.get("dataset.classes", "all")
        self.compare(done.stdout, classes)
        of = json.loads((self.run / PLACES[classes] / RESULTS_FILE).read_text())["of"]
        assert of["template"] == asked.get("dataset.template", of["template"])

    def lose_the_newest(self):
        step, *others = steps_of(self.run / FOLDER)
        if others:
            shutil.rmtree(self.run / FOLDER / str(step))

    def check(self, classes, folder):
        """Compare results with the command that trained their prompts, and reports with the truth.

        A report of results of other prompts than the newest is refused.
        """
        results = json.loads((folder / RESULTS_FILE).read_text())
        own = dict(self.trained[results["of"]["prompts"]])
        shots, seed = own.pop("dataset.shots"), own.pop("seed")
        assert (results["shots"], results["seed"]) == (shots, seed), self.done
        assert own.items() <= results["of"]["settings"].items(), self.done
        try:
            text, _ = one_run.report_run(folder)
        except UserError as reason:
            assert "evaluate again" in str(reason), reason
            return
        self.compare(text, classes)
        assert f"Trained on images, {shots_in_words(shots)}, seed {seed}" in text, self.done

    def compare(self, text, classes="all"):
        """Compare a printed accuracy with that of a fresh evaluation of the newest prompts."""
        saved = load_newest(self.run)
        if (saved.digest, classes) not in self.accuracies:
            config = small_config(self.clip_dir, vlp, dataset__classes=classes, **SIZES)
            found = evaluation.predict(experiments.prepare(config), saved.prompts)
            right = found.logits.argmax(-1) == found.label
            self.accuracies[saved.digest, classes] = f"{100 * right.mean():.1f}", str(len(right))
        assert SHOWN.search(text).groups() == self.accuracies[saved.digest, classes], self.done
        self.shown += 1


def test_two_hundred_histories(tmp_path, clip_dir, monkeypatch, capsys):
    """The backbone is loaded once for all commands, and no figures are drawn."""
    monkeypatch.setattr(experiments, "load_clip", functools.lru_cache(load_clip))
    monkeypatch.setattr(one_run, "draw", lambda *_: {})
    shown = 0
    for done, seed in enumerate(SOAK):
        folder = tmp_path / str(seed)
        folder.mkdir()
        with monkeypatch.context() as patch:
            history = History(seed, folder, clip_dir, patch)
            for _ in range(EVENTS):
                history.take()
        shown += history.shown
        shutil.rmtree(folder)
        with capsys.disabled():
            print(f"\r{done + 1} histories: {shown} accuracies shown, all true", end="")
    assert shown > len(SOAK)
