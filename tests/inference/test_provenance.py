"""Results belong to their prompts: a reader notices when the prompts are others by now."""

import json
import shutil

import jax
import numpy as np
import pytest

from configs import coop
from dpt_jax import settings
from dpt_jax.cli import convert
from dpt_jax.errors import UserError
from dpt_jax.evaluation.evaluate import evaluate
from dpt_jax.evaluation.provenance import finished, outdated, read_current
from dpt_jax.report.one_run import report_run
from dpt_jax.report.runs import report_folder
from dpt_jax.training import initial_prompts as adoption
from dpt_jax.training import prompt_file
from dpt_jax.training import setup as experiments
from dpt_jax.training.checkpoints import Checkpoints, load_newest
from dpt_jax.training.digests import digest_of_json
from dpt_jax.training.fingerprint import clip_fingerprint, training_meta
from tests.helpers.configs import small_config


@pytest.fixture(scope="module")
def config(clip_dir):
    config = small_config(clip_dir, coop)
    config.text_prompt.length, config.train.epochs = 2, 1
    config.eval.save_logits = True
    return config


@pytest.fixture(scope="module")
def prepared(config, clip):
    return experiments.prepare(config, clip)


def save(prepared, workdir, step, noise):
    """A checkpoint of a training that ended with these prompts."""
    prompts = jax.tree.map(lambda x: x + np.float32(noise), adoption.initial_prompts(prepared))
    with Checkpoints(workdir, create=True) as checkpoints:
        meta = {**training_meta(prepared), "epoch": 1}
        checkpoints.save(step, prompts, meta)
        checkpoints.wait()


@pytest.fixture(scope="module")
def evaluated(prepared, config, tmp_path_factory):
    """A run with results, and the same prompts tested as on another dataset."""
    workdir = tmp_path_factory.mktemp("runs") / "base"
    settings.save(config, workdir)
    save(prepared, workdir, 1, 0.0)
    for folder in (workdir, workdir / "on" / "other"):
        evaluate(prepared, load_newest(workdir), folder)
    return workdir


@pytest.fixture
def run(evaluated, tmp_path):
    return shutil.copytree(evaluated, tmp_path / "runs" / "base")


def test_results_name_what_they_are_of(run, prepared):
    saved = load_newest(run)
    of = json.loads((run / "results.json").read_text())["of"]
    assert (of["step"], of["prompts"]) == (1, saved.digest)
    assert of["backbone"] == digest_of_json(clip_fingerprint(prepared.pretrained))
    assert of["template"] == prepared.config.dataset.template
    assert of["data"]["name"] == of["trained_on"]["name"] == "images"
    assert of["settings"]["train.text_lr"] == prepared.config.train.text_lr
    assert not {"seed", "dataset.root", "clip.weights"}.intersection(of["settings"])
    with np.load(run / "predictions.npz") as found:
        assert (int(found["step"]), str(found["prompts"])) == (1, saved.digest)


def test_results_of_other_prompts_are_noticed_by_all_who_read_them(run, prepared, config):
    """A run that went on, or was trained again: its own results, and those elsewhere."""
    elsewhere = run / "on" / "other"
    assert finished(run, config)
    assert finished(elsewhere, config)
    assert not outdated(read_current(elsewhere), elsewhere)
    save(prepared, run, 2, 0.1)
    assert not finished(run, config)
    assert not finished(elsewhere, config)
    for folder in (run, elsewhere):
        with pytest.raises(UserError, match=r"is of the prompts of step 1, .* of step 2: evaluate"):
            report_run(folder)
    text, _ = report_folder(run.parent)
    assert text.count("left out; evaluate again") == 2
    assert "| " not in text
    convert.export(run, run / "prompts.safetensors")
    assert prompt_file.read_header(run / "prompts.safetensors")["results"] is None
    # Evaluated again, they are results of the new prompts.
    evaluate(prepared, load_newest(run), run)
    assert finished(run, config)
    assert read_current(run)["of"]["step"] == 2


def test_results_of_an_exported_file_are_not_those_of_a_run_that_went_on(run, prepared):
    """They share the place where they are evaluated on other data, RUN/on/DATASET."""
    file, elsewhere = run.with_name(f"{run.name}.safetensors"), run / "on" / "other"
    convert.export(run, file)
    save(prepared, run, 2, 0.1)
    evaluate(prepared, load_newest(file), elsewhere)
    with pytest.raises(UserError, match=r"is of the prompts of step 1, .* of step 2: evaluate"):
        read_current(elsewhere)
    shutil.rmtree(run / "checkpoints")
    assert read_current(elsewhere)["of"]["step"] == 1


def test_the_same_step_with_other_prompts_is_noticed(run, prepared, config):
    shutil.rmtree(run / "checkpoints")
    save(prepared, run, 1, 0.2)
    assert not finished(run, config)


def test_unfinished_runs_and_old_results_are_not_finished(run, config):
    more = config.copy_and_resolve_references()
    more.train.epochs = 2
    assert not finished(run, more)
    more = config.copy_and_resolve_references()
    more.dataset.template = "{}"
    assert not finished(run, more)
    file = run / "results.json"
    results = json.loads(file.read_text())
    del results["of"]
    file.write_text(json.dumps(results))
    assert not finished(run, config)
    assert read_current(run)  # it is read all the same
    assert "an older version wrote these results" in report_folder(run.parent)[0]


def test_predictions_of_other_prompts_are_not_those_asked_for(run, config):
    with np.load(run / "predictions.npz") as found:
        columns = {**found, "prompts": "other"}
    np.savez(run / "predictions.npz", **columns)
    assert not finished(run, config)
    config = config.copy_and_resolve_references()
    config.eval.save_logits = False
    assert finished(run, config)
