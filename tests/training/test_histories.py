"""Random histories of a run: whatever was done to it, an accuracy that is shown is a true one."""

import csv
import functools
import random
import re
import shutil
import signal

import jax
import numpy as np
import pytest
from etils import epath

from dpt_jax.clip.pretrained import load_clip
from dpt_jax.config import method_config, validate
from dpt_jax.errors import UserError
from dpt_jax.evaluation import evaluate as evaluation
from dpt_jax.evaluation.results import RESULTS_FILE
from dpt_jax.report import one_run, runs
from dpt_jax.training import prompt_file
from dpt_jax.training import setup as experiments
from dpt_jax.training.checkpoints import FOLDER, load_newest
from dpt_jax.training.metrics import MetricWriter
from dpt_jax.training.signals import EXIT_CODE
from tests.helpers.commands import in_process
from tests.helpers.golden import SMALL

pytestmark = pytest.mark.slow

SHOWN = re.compile(r"(\d+\.\d) % of (\d+) test images right")
SOAK = range(100, 300)
EVENTS = 8


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two folders of images of the same classes, home and away, on which a run scores otherwise."""
    root = tmp_path_factory.mktemp("data")
    shutil.copytree(SMALL / "images", root / "home")
    shutil.copytree(SMALL / "images", root / "away")
    first, *_ = sorted((root / "away" / "test").iterdir())
    for image in sorted(first.iterdir())[1:]:
        image.unlink()
    return root


@pytest.fixture
def quick(monkeypatch):
    """Load the backbone once for all commands, and draw no figures."""
    monkeypatch.setattr(experiments, "load_clip", _load_once)
    for name in ("draw_confusion", "draw_training", "draw_reliability"):
        monkeypatch.setattr(one_run, name, lambda *_: b"")
    monkeypatch.setattr(runs, "draw_curves", lambda *_: b"")


@functools.lru_cache(maxsize=1)
def _load_once(weights, dtype, _):
    return load_clip(weights, dtype)


class History:
    """A run, what is done to it, and what is said of it meanwhile."""

    def __init__(self, seed, folder, data, clip_dir, monkeypatch):
        self.random, self.monkeypatch = random.Random(seed), monkeypatch
        self.runs, self.run, self.file = folder, folder / "run", folder / "run.safetensors"
        self.data, self.clip_dir, self.done = data, clip_dir, []
        self._true: dict[tuple[str, str], tuple[float, int]] = {}
        self.shown = 0

    def settings(self, place):
        return [
            "--config=configs/vlp.py:folder",
            f"--config.clip.weights={self.clip_dir}",
            f"--config.dataset.root={self.data / place}",
            "--config.text_prompt.length=2",
            "--config.visual_prompt.length=2",
            "--config.train.warmup_epochs=0",
            "--config.train.visual_lr=0.3",
            "--config.train.text_lr=0.3",
        ]

    def take(self):
        """Do one thing, chosen at random, and check all that is shown afterwards."""
        choices = [self.train, self.train, self.train_and_stop, self.train_and_fail]
        if (self.run / FOLDER).exists():
            choices += [self.evaluate, self.evaluate_away, self.export, self.lose_the_newest]
        if self.file.exists():
            choices += [self.evaluate_file, self.start_from_file]
        chosen = self.random.choice(choices)
        self.done.append(chosen.__name__)
        chosen()
        self.check()

    def train(self):
        epochs, seed = self.random.randint(1, 3), self.random.randint(1, 2)
        options = [f"--config.train.epochs={epochs}", f"--config.seed={seed}"]
        options += self.random.choice([[], ["--allow_changes"]])
        self.done[-1] += f" {' '.join(options)}"
        done = in_process(
            "main.py", *self.settings("home"), *options, f"--workdir={self.run}", check=False
        )
        assert done.returncode in (0, 2, EXIT_CODE), done.stderr
        if done.returncode == 0:
            self.compare(done.stdout, self.run, "home")

    def train_and_stop(self):
        """With a signal in the first epoch that it trains."""
        write = MetricWriter.write

        def write_and_stop(writer, step, values):
            write(writer, step, values)
            signal.raise_signal(signal.SIGTERM)

        with self.monkeypatch.context() as patch:
            patch.setattr(MetricWriter, "write", write_and_stop)
            self.train()

    def train_and_fail(self):
        """Train to the end, after which the evaluation cannot read its images."""

        def fail(*_):
            raise UserError("the images are gone.")

        with self.monkeypatch.context() as patch:
            patch.setattr(evaluation, "predict", fail)
            self.train()

    def evaluate(self):
        done = in_process("main.py", "--mode=eval", f"--workdir={self.run}")
        self.compare(done.stdout, self.run, "home")

    def evaluate_away(self):
        self.elsewhere(self.run)

    def evaluate_file(self):
        self.elsewhere(self.file)

    def elsewhere(self, source):
        done = in_process(
            "main.py",
            "--config=configs/vlp.py:folder",
            "--mode=eval",
            f"--config.init_from={source}",
            f"--config.dataset.root={self.data / 'away'}",
        )
        self.compare(done.stdout, source, "away")

    def export(self):
        in_process("-m", "dpt_jax", "convert", "export", str(self.run), str(self.file))

    def start_from_file(self):
        """Another run in the same place, from the file's prompts."""
        shutil.rmtree(self.run)
        in_process(
            "main.py",
            *self.settings("home"),
            f"--config.init_from={self.file}",
            "--config.train.epochs=1",
            f"--workdir={self.run}",
        )

    def lose_the_newest(self):
        steps = sorted((self.run / FOLDER).iterdir(), key=lambda folder: int(folder.name))
        if len(steps) > 1:
            shutil.rmtree(steps[-1])

    def check(self):
        """Compare all that a report, a page or an exported file says with a fresh evaluation."""
        for folder, place in ((self.run, "home"), (self.run / "on" / "folder", "away")):
            if (folder / RESULTS_FILE).exists():
                try:
                    text, _ = one_run.report_run(folder)
                except UserError as reason:
                    assert "evaluate again" in str(reason), reason
                else:
                    self.compare(text, self.run, place)
        if self.file.exists() and (results := prompt_file.read_header(self.file).get("results")):
            assert self.true(self.file, "home") == (results["accuracy"], results["n"])
        results = [*self.runs.rglob(RESULTS_FILE)]
        if results:
            try:
                runs.report_folder(self.runs)
            except UserError as reason:
                assert "no results" in str(reason) or "evaluate" in str(reason), reason
                return
            with (self.runs / "report.csv").open(encoding="utf-8", newline="") as lines:
                for line in csv.DictReader(lines):
                    self.compare_line(line)

    def compare_line(self, line):
        """Compare a line of the report over all runs, whose places differ in their images."""
        (truth,) = [
            accuracy
            for accuracy, images in (self.true(self.run, place) for place in ("home", "away"))
            if images == int(line["images"])
        ]
        assert float(line["accuracy_mean"]) == pytest.approx(100 * truth, abs=1e-3), self.done
        self.shown += 1

    def compare(self, text, source, place):
        """Compare what is printed with what the newest prompts of a source score."""
        percent, images = SHOWN.search(text).groups()
        accuracy, count = self.true(source, place)
        assert (percent, int(images)) == (f"{100 * accuracy:.1f}", count), self.done
        self.shown += 1

    def true(self, source, place):
        """Return the accuracy of the newest prompts of a source, and of how many test images."""
        saved = load_newest(epath.Path(source))
        key = (saved.digest, place)
        if key not in self._true:
            config = method_config("vlp", "folder")
            config.clip.weights, config.dataset.root = str(self.clip_dir), str(self.data / place)
            config.text_prompt.length = config.visual_prompt.length = 2
            validate(config)
            experiment = experiments.prepare(config)
            found = evaluation.predict(experiment, jax.tree.map(np.asarray, saved.prompts))
            accuracy = float((found.logits.argmax(-1) == found.label).mean())
            self._true[key] = accuracy, len(found.label)
        return self._true[key]


def live(seed, folder, data, clip_dir, monkeypatch):
    """Return a history after some events."""
    history = History(seed, folder, data, clip_dir, monkeypatch)
    for _ in range(EVENTS):
        history.take()
    return history


def test_two_hundred_histories(tmp_path, data, clip_dir, quick, monkeypatch, capsys):
    shown = 0
    for done, seed in enumerate(SOAK):
        folder = tmp_path / str(seed)
        folder.mkdir()
        shown += live(seed, folder, data, clip_dir, monkeypatch).shown
        shutil.rmtree(folder)
        with capsys.disabled():
            print(f"\r{done + 1} histories: {shown} accuracies shown, all true", end="")
    assert shown > len(SOAK)
