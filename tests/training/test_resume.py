"""Stopped, killed and damaged runs end with the same bits after the same command; and what a run
can resume with.

Two hosts are in tests/test_distributed.py.
"""

import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest

from configs import coop, promptsrc
from dpt_jax import distributed
from dpt_jax.clip.model import normalize
from dpt_jax.evaluation.evaluate import evaluate
from dpt_jax.io import as_path
from dpt_jax.runs import evaluate_run, train_run, with_dtype
from dpt_jax.training import loop
from dpt_jax.training import saved as adoption
from dpt_jax.training import setup as experiments
from dpt_jax.training.checkpoints import DAMAGED, FOLDER, Checkpoints, load_newest, newest
from dpt_jax.training.optimizer import Schedule, learning_rates
from dpt_jax.training.setup import consistency_target
from dpt_jax.training.state import EXIT_CODE, Plan, Stopped, new_state
from dpt_jax.training.step import StepConfig, make_step
from dpt_jax.training.workdir import save_config
from tests.helpers.commands import assert_refused, command, in_process, refused
from tests.helpers.configs import IMAGES, small_config, small_flags
from tests.helpers.models import frozen_features
from tests.helpers.runs import SETTINGS, Run, assert_same_end

pytestmark = pytest.mark.compiles
LONG = ["--config.train.epochs=60", "--config.checkpoint.every_steps=7"]  # 120 steps, seconds long


@pytest.fixture(scope="module")
def settings(clip_dir):
    return [f"--config.clip.weights={clip_dir}", *LONG]


@pytest.fixture(scope="module")
def whole(settings, made_once):
    flags = [*SETTINGS, *settings]
    return made_once("whole", lambda workdir: in_process("main.py", *flags, f"--workdir={workdir}"))


@pytest.mark.process
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_stopped(settings, whole, tmp_path, number):
    """With a loader process, which gets the signal too."""
    arguments = [*settings, f"--workdir={tmp_path}"]
    run = Run(*arguments, "--config.dataset.workers=1")
    run.read_until("epoch 5/")
    run.send(number)
    assert run.end() == EXIT_CODE, run.output
    assert "Traceback" not in run.output
    assert 10 <= load_newest(tmp_path).step < 120
    assert not (tmp_path / "results.json").exists()
    in_process("main.py", *SETTINGS, *arguments)
    assert_same_end(tmp_path, whole)


@pytest.mark.process
def test_killed_in_a_bucket_on_a_machine_that_loses_its_disk(settings, whole, bucket, tmp_path):
    arguments = [*settings, f"--workdir={bucket}/runs/one"]
    disk = tmp_path / "disk"
    disk.mkdir()
    run = Run(*arguments, TMPDIR=str(disk), XDG_CACHE_HOME=str(disk / "cache"))
    run.read_until("epoch 30/")
    run.send(signal.SIGKILL)
    run.end()
    shutil.rmtree(disk)
    workdir = as_path(f"{bucket}/runs/one")
    assert load_newest(workdir).step >= 49
    in_process("main.py", *SETTINGS, *arguments)
    assert_same_end(workdir, whole)
    files = [{file.name.partition(".tfevents")[0] for file in run.iterdir()}
             for run in (workdir, whole)]  # fmt: skip
    assert files[0] == files[1] - {".lock"}


def test_damaged(settings, whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    (workdir / "results.json").unlink()
    (data,) = (workdir / "checkpoints" / "120" / "prompts" / "d").iterdir()
    data.write_bytes(data.read_bytes()[:-1])
    done = in_process("main.py", *SETTINGS, *settings, f"--workdir={workdir}")
    assert f"{workdir / DAMAGED / '120'}" in done.stderr
    assert_same_end(workdir, whole)


# From the first checkpoint on, a disk that only takes small files, like a full one.
FULL = """
import resource, runpy, sys
from dpt_jax.training.checkpoints import Checkpoints

save = Checkpoints.save

def fill(*arguments):
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
    save(*arguments)

Checkpoints.save = fill
sys.argv = ["main.py", *sys.argv[1:]]
runpy.run_path("main.py", run_name="__main__")
"""


@pytest.mark.process
@pytest.mark.slow
def test_a_full_disk(settings, whole, tmp_path):
    """The last good checkpoint stays; with room again, the same command resumes there."""
    workdir = without(whole, tmp_path / "run", 120)
    arguments = [*SETTINGS, *settings, f"--workdir={workdir}"]
    done = command("-c", FULL, *arguments, check=False)
    assert_refused(done, str(workdir))
    assert load_newest(workdir).step == 119
    in_process("main.py", *arguments)
    assert_same_end(workdir, whole)


def test_checkpoints_by_the_clock(clip_dir, tmp_path):
    """Every 6 ms means after most of the six steps; by steps there would be one, at the end."""
    own = {"checkpoint__every_minutes": 0.0001, "checkpoint__keep": 9, "train__epochs": 3}
    flags = [*SETTINGS, *small_flags(clip_dir, **own), f"--workdir={tmp_path}"]
    in_process("main.py", *flags)
    assert len(list((tmp_path / "checkpoints").iterdir())) >= 3


def test_a_started_run_no_longer_needs_what_it_started_from(clip_dir, tmp_path):
    """Its own checkpoint has the prompts, in the middle of the training and at its end."""
    first = [*SETTINGS, f"--config.clip.weights={clip_dir}", "--config.train.epochs=1"]
    in_process("main.py", *first, f"--workdir={tmp_path / 'first'}")
    second = tmp_path / "second"
    arguments = [*first, f"--config.init_from={tmp_path / 'first'}", f"--workdir={second}",
                 "--config.checkpoint.every_steps=1"]  # fmt: skip
    in_process("main.py", *arguments)
    shutil.rmtree(tmp_path / "first")
    expected = load_newest(second).digest
    in_process("main.py", *arguments)
    shutil.rmtree(second / "checkpoints" / "2")
    in_process("main.py", *arguments)
    assert load_newest(second).digest == expected


def test_ctrl_c_before_there_is_anything_to_save(settings, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiments, "load_dataset", interrupt)
    done = in_process("main.py", *SETTINGS, *settings, f"--workdir={tmp_path}", check=False)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr


@pytest.fixture
def config(clip_dir):
    """CoOp for one epoch of two steps."""
    own = {"dataset__shots": -1, "text_prompt__length": 4}
    return small_config(clip_dir, coop, **own, train__epochs=1, train__batch_size=6)


def train(config, clip, workdir, **options):
    return loop.train(experiments.prepare(config, clip), workdir, **options)


def without(workdir, copy, *steps):
    """Copy a run without some of its checkpoints."""
    shutil.copytree(workdir, copy)
    for step in steps:
        shutil.rmtree(copy / FOLDER / str(step))
    return copy


@pytest.fixture
def started(config, clip, made_once, tmp_path):
    """A copy of a run of that configuration."""
    return without(made_once("started", lambda run: train(config, clip, run)), tmp_path / "run")


def test_other_images_are_refused_or_reported(config, clip, started, tmp_path, capsys):
    images = shutil.copytree(IMAGES, tmp_path / "images")
    config.dataset.root = str(images)
    listed = (started / "train_files.txt").read_text()
    for folder in (images / "train").iterdir():
        shutil.copy(next(folder.iterdir()), folder / "one_more.png")
    refused(f"{started}.*train_files.txt", train, config, clip, started)
    assert (started / "train_files.txt").read_text() == listed
    config.train.epochs = 2
    capsys.readouterr()
    train(config, clip, started, allow_changes=True)
    assert "3 steps per epoch (before: 2)" in capsys.readouterr().out
    assert len((started / "train_files.txt").read_text().splitlines()) == 18
    # The steps of two epochs are not taken for those of three.
    config.train.epochs, config.train.batch_size = 3, 9
    says = "6 steps, 3 an epoch.* step 6, with 2"
    refused(says, train, config, clip, started, allow_changes=True)


@pytest.mark.parametrize("method", ["coop", "sstext"])
def test_a_signal_in_the_last_step_ends_the_command(config, clip, tmp_path, monkeypatch, method):
    """And not only the training, before the evaluation or the next run of a sweep."""
    if method == "sstext":
        config.method = config.classifier.name = "sstext"

    class Signalled(Checkpoints):
        def wait(self):
            super().wait()
            os.kill(os.getpid(), signal.SIGTERM)

    stop = [lambda values: os.kill(os.getpid(), signal.SIGTERM)]
    if method == "sstext":
        monkeypatch.setattr(loop, "Checkpoints", Signalled)
    with pytest.raises(Stopped):
        train(config, clip, tmp_path / "run", callbacks=stop)
    assert newest(tmp_path / "run")
    train(config, clip, tmp_path / "run")


def test_settings_that_a_power_cut_lost_are_those_of_the_checkpoint(config, tmp_path):
    started = tmp_path / "run"
    train_run(config, started)
    changed = config.copy_and_resolve_references()
    changed.train.text_lr = 1.0
    for content in (None, ""):
        (started / "config.json").unlink(missing_ok=True)
        if content is not None:
            (started / "config.json").write_text(content)
        refused("train.text_lr", train_run, changed, started)
        train_run(config, started)


def test_what_a_run_cannot_resume_with(config, clip, started):
    """A CLIP of the same sizes, whose path may change; another optimizer; fewer epochs."""
    config.train.epochs = 2
    other = clip._replace(params=jax.tree.map(lambda x: x * 1.1, clip.params), digest="other")
    says = "run was trained on a different CLIP"
    refused(says, train, config, other, started, allow_changes=True)
    config.train.optimizer = "adamw"
    refused(rf"{started}: momentum\.count", train, config, clip, started, allow_changes=True)
    assert load_newest(started).step == 2
    config.train.optimizer = "sgd"
    train(config, clip, started, allow_changes=True)
    config.train.epochs = 1
    says = "was trained for 4 steps.* end at step 2"
    refused(says, train, config, clip, started, allow_changes=True)
    assert load_newest(started).step == 4


def test_dtype_of_the_computation_is_saved_and_resumed(config, tmp_path):
    workdir = tmp_path / "run"
    assert config.dtype == "auto"
    results = evaluate(*train_run(config, workdir), workdir)
    assert json.loads((workdir / "config.json").read_text())["dtype"] == "float32"
    assert evaluate_run(config, workdir, tmp_path / "again")[0] == results
    # As if it had been started on a GPU.
    shutil.rmtree(workdir / FOLDER)
    begun = with_dtype(config, workdir)
    begun.dtype = "bfloat16"
    save_config(begun, workdir)
    assert with_dtype(config, workdir).dtype == "bfloat16"


def test_steps_after_a_skipped_step(config, clip):
    """The rate is the reported one; an update too large for float32 is left out as well."""
    experiment = experiments.prepare(config, clip)
    # Warm-up is over after the first step.
    schedule = Schedule(0.01, 0.002, 1, 2, steps_per_epoch=1)
    plan = Plan(6, 2, schedule, StepConfig(0.3, skip=True))
    take_step = make_step(experiment.model, plan.step)
    image = np.random.default_rng(0).integers(0, 256, (1, 6, 32, 32, 3), np.uint8)
    label, weight = np.arange(6, dtype=np.int32)[None], np.ones((1, 6), np.float32)
    batch = {"image": image, "label": label, "weight": weight}
    broken = {**batch, "weight": np.nan * weight}
    prompts = adoption.initial_prompts(experiment)

    def after(*batches, schedule=schedule, momentum=0.0):
        state = new_state(experiment.model, plan, prompts)
        pushed = jax.tree.map(lambda x: np.full_like(x, momentum), state.opt_state)
        state = distributed.replicate(state._replace(opt_state=pushed))
        for one in batches:
            numbers = distributed.replicate(schedule.as_arrays())
            state = take_step(state, experiment.pretrained.params, experiment.texts, one, numbers)
        return distributed.to_host(state)

    first, second = after(batch), after(broken, batch)
    assert (second.step, *second.not_finite) == (2, 1, 1)
    moved = [s.prompts["text"]["context"] - prompts["text"]["context"] for s in (first, second)]
    rates = [float(learning_rates(schedule, step)["text"]) for step in (0, 1)]
    ratio = np.linalg.norm(moved[1]) / np.linalg.norm(moved[0])
    assert ratio == pytest.approx(rates[1] / rates[0], rel=0.02)
    # Loss and gradient are finite, and rate times momentum is not.
    fast = Schedule(100.0, 100.0, 0, 2, steps_per_epoch=1)
    pushed = after(batch, batch, schedule=fast, momentum=3e38)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(pushed.prompts))
    assert pushed.not_finite.steps == 1


TEMPLATES = ("a photo of a {}.", "a {} in a video game.")


@pytest.fixture(scope="module")
def experiment(clip_dir, clip):
    """Three epochs of two steps, the last of which counts least."""
    own = {"epochs": 3, "batch_size": 6, "average_mean": 1.0, "average_deviation": 1.0}
    own = {f"train__{key}": value for key, value in own.items()} | {"text_prompt__length": 4}
    own |= {"checkpoint__every_steps": 1, "checkpoint__keep": 10}
    return experiments.prepare(small_config(clip_dir, coop, **own), clip)


@pytest.fixture(scope="module")
def finished(experiment, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    return workdir, loop.train(experiment, workdir)


def test_a_resumed_run_has_the_same_bits(experiment, finished, tmp_path):
    """Also the average of its epochs, if it was stopped within an epoch."""
    workdir, prompts = finished
    again = loop.train(experiment, without(workdir, tmp_path / "run", 4, 5, 6))
    jax.tree.map(np.testing.assert_array_equal, again, prompts)


def test_an_average_over_other_epochs_is_refused(experiment, finished, tmp_path):
    config = experiment.config.copy_and_resolve_references()
    other, run = experiment._replace(config=config), finished[0]
    config.train.epochs = 4
    says = "averages its prompts over 3 epochs"
    refused(says, loop.train, other, run, allow_changes=True)
    # The three steps would be three epochs, so two of the weights would never be added.
    config.train.epochs, config.train.batch_size = 3, 12
    run = without(run, tmp_path / "run", 4, 5, 6)
    says = "3 epochs of 2 steps, not over 3 of 1"
    refused(says, loop.train, other, run, allow_changes=True)


def test_target_texts_are_the_mean_of_unnormalised_features(clip_dir, clip):
    """As published, not normalised before the mean, unlike the ensemble of zero-shot CLIP."""
    config = small_config(clip_dir, promptsrc, loss__template="|".join(TEMPLATES))
    config.text_prompt.depth = config.visual_prompt.depth = 2
    experiment = experiments.prepare(config, clip)
    each = []
    for template in TEMPLATES:
        texts = [template.format(name) for name in experiment.dataset.classnames]
        each.append(frozen_features(experiment.model, clip.params, texts, clip.tokenizer))
    found = distributed.to_host(consistency_target(experiment))
    np.testing.assert_allclose(found, sum(each) / 2, rtol=1e-4, atol=1e-5)
    assert np.abs(normalize(found) - normalize(sum(map(normalize, each)))).max() > 1e-4
