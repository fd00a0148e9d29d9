"""Prompts handed on as one file."""

import json

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import dpt_jax
from configs import dpt_clap
from dpt_jax.io import as_path
from dpt_jax.training.checkpoints import Saved, load_newest, read_header, write_prompt_file
from dpt_jax.training.workdir import load_config
from tests.helpers.commands import command_refused, in_process, refused
from tests.helpers.configs import results_of
from tests.helpers.golden import IMAGES, same_bytes

pytestmark = pytest.mark.compiles


@pytest.fixture(scope="module")
def shared(trained, tmp_path_factory):
    file = tmp_path_factory.mktemp("shared") / "prompts.safetensors"
    done = in_process("convert", "export", trained, file)
    assert f"wrote {file}: dpt prompts" in done.stdout
    return file


def test_a_file_has_the_prompts_to_the_byte_and_says_what_they_are(shared, trained):
    own = load_newest(trained)
    assert same_bytes(load_newest(shared).prompts, own.prompts)
    assert load_newest(shared).meta == own.meta
    with safetensors.safe_open(shared, "numpy") as opened:
        header = {k: json.loads(x) for k, x in opened.metadata().items() if k != "format"}
    results = results_of(trained)
    config = json.loads((trained / "config.json").read_text())
    assert header["classnames"] == own.meta["classnames"]
    assert (header["method"], header["backbone"]) == ("dpt", config["clip"]["weights"])
    assert header["template"] == config["dataset"]["template"]
    assert header["results"]["accuracy"] == results["accuracy"]
    # All settings but the folder of the data, which other machines lack.
    assert header["settings"] == {**config, "dataset": {**config["dataset"], "root": ""}}
    assert str(IMAGES) not in json.dumps(header)
    assert shared.stat().st_size < sum(x.nbytes for x in jax.tree.leaves(own.prompts)) + 10_000


def test_a_file_stands_where_a_workdir_does(shared, trained, files, tmp_path):
    """predict and export in this process; main.py's evaluation and init_from as commands."""
    expected = dpt_jax.load(trained).predict_proba(files)
    np.testing.assert_array_equal(dpt_jax.load(shared).predict_proba(files), expected)
    again = tmp_path / "again.safetensors"
    in_process("convert", "export", shared, again)
    assert same_bytes(load_newest(again).prompts, load_newest(shared).prompts)
    assert read_header(again) == read_header(shared)
    root = f"--config.dataset.root={IMAGES}"
    in_process("main.py", "--config=configs/dpt.py", "--mode=eval", f"--workdir={shared}", root,
            "--config.eval.save_logits=True")  # fmt: skip
    elsewhere = shared.with_suffix("") / "on" / "folder"
    logits = (np.load(folder / "predictions.npz")["logits"] for folder in (elsewhere, trained))
    # The program of the training was compiled with fewer optimisations.
    np.testing.assert_allclose(*logits, rtol=1e-3, atol=1e-3)
    in_process("main.py", "--config=configs/dpt.py:folder", f"--config.init_from={shared}", root,
               "--config.train.epochs=1", "--config.train.visual_lr=0.0",
               "--config.train.text_lr=0.0", f"--workdir={tmp_path / 'on'}")  # fmt: skip
    tokens = (load_newest(run).prompts["visual"]["tokens"] for run in (tmp_path / "on", trained))
    np.testing.assert_allclose(*tokens, atol=1e-3)  # new ones: 0.02


def test_saving_from_python_is_exporting(shared, trained, predictor, tmp_path):
    saved = tmp_path / "saved.safetensors"
    predictor.save(saved)
    assert read_header(as_path(saved)) == read_header(as_path(shared))
    assert load_newest(saved).digest == load_newest(shared).digest
    refused(r"saved\.bin", predictor.save, tmp_path / "saved.bin")
    refused("classes", dpt_jax.load(trained, ["dog"]).save, tmp_path / "x.safetensors")


def test_a_classifier_on_other_prompts_is_exported_too(tmp_path):
    """Its settings have no epochs, which only a run with init_from may lack, and name no folder."""
    config = dpt_clap.get_config("folder")
    config.init_from, config.train.epochs = str(tmp_path / "private" / "first"), 0
    config.dataset.split = "/private/split.csv"
    file = tmp_path / "a.safetensors"
    saved = Saved(1, {"text": {"x": np.zeros(2)}}, {"method": "dpt_clap"})
    write_prompt_file(file, saved, config.to_dict(), None)
    assert load_config(file).init_from == "first"
    assert "private" not in json.dumps(read_header(file))


def test_a_file_is_not_trained_in(shared):
    command = ("main.py", f"--workdir={shared}")
    command_refused("--mode=eval", *command)
    command_refused("init_from", *command, "--mode=eval", "--config.init_from=x")


def test_files_that_are_no_prompts(shared, tmp_path):
    whole, file = shared.read_bytes(), tmp_path / "odd.safetensors"
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        refused(str(file), load_newest, file)
    safetensors.numpy.save_file({"x": np.zeros(3)}, file)
    for name in ("odd", "none"):
        refused(f"{name}.safetensors", dpt_jax.load, tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        *({"header": {key: None}} for key in ("settings", "step", "training")),
        *({"header": {key: x}} for key, x in (("settings", "{"), ("training", "[]"))),
        {"header": {"step": '"x"'}},
        *({"settings": {key: x}} for key, x in (("cavpt", None), ("no_such_key", 1))),
        {"settings": {"dataset": {"template": "{0.__class__}"}}},
        *({"tensors": {"cavpt.classifier.kernel": x}} for x in (None, np.zeros(3, np.float32))),
        {"tensors": {"text.context": np.zeros((1, 4, 128), np.int32)}},
    ],
    ids=str,
)
def test_entries_or_tensors_that_are_missing_or_of_other_kinds(shared, tmp_path, change):
    """Entries that are None are left out."""
    with safetensors.safe_open(shared, "numpy") as opened:
        header = opened.metadata() | change.get("header", {})
    if changed := change.get("settings"):
        header["settings"] = json.dumps(json.loads(header["settings"]) | changed)
    tensors = safetensors.numpy.load_file(shared) | change.get("tensors", {})
    tensors, header = ({k: x for k, x in y.items() if x is not None} for y in (tensors, header))
    safetensors.numpy.save_file(tensors, tmp_path / "odd.safetensors", header)
    refused(r"odd\.safetensors", dpt_jax.load, tmp_path / "odd.safetensors")


def test_export_says_what_it_cannot_do(trained, tmp_path):
    for source, name in ((trained, "a.bin"), (trained, "no/a.safetensors"), (tmp_path, "")):
        target = tmp_path / (name or "a.safetensors")
        command_refused(tmp_path / name, "convert", "export", source, target)
