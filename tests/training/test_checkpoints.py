"""Checkpoints, the lock of a workdir, and prompts as one file: damage, and what is read."""

import errno
import json
import os
import platform
import shutil
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors
import safetensors.numpy

import dpt_jax
from configs import dpt_clap
from dpt_jax.io import as_path, file_system
from dpt_jax.training.checkpoints import (
    DAMAGED,
    FOLDER,
    Checkpoints,
    Saved,
    load_newest,
    newest,
    read_header,
    steps_of,
    write_prompt_file,
)
from dpt_jax.training.workdir import LOCK_FILE, LockedError, is_locked, load_config, locked
from tests.helpers.commands import command_refused, in_process, refused
from tests.helpers.configs import IMAGES
from tests.helpers.golden import same_bytes
from tests.helpers.runs import results_of

PROMPTS = {
    "text": {"context": np.arange(6, dtype=np.float32).reshape(1, 2, 3)},
    "visual": {"tokens": np.ones((2, 2), np.float32)},
}


def prompts_of(step):
    return jax.tree.map(lambda x: x + np.float32(step), PROMPTS)


def training_of(step):
    return {"momentum": prompts_of(step), "totals": np.full(3, step, np.float32)}


def written(workdir, steps=(1, 2)):
    with Checkpoints(workdir) as checkpoints:
        for step in steps:
            checkpoints.save(step, prompts_of(step), {"epoch": step}, training_of(step))
        checkpoints.wait()
    return workdir


def resume(workdir):
    """Return the step at which a run resumes; check that its trees are those that were saved."""
    with Checkpoints(workdir) as checkpoints:
        saved = checkpoints.resume()
    jax.tree.map(np.testing.assert_array_equal, saved.prompts, prompts_of(saved.step))
    jax.tree.map(np.testing.assert_array_equal, saved.training, training_of(saved.step))
    assert saved.meta == {"epoch": saved.step}
    return saved.step


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    return written(tmp_path_factory.mktemp("two"))


@pytest.fixture
def copied(two_steps, tmp_path):
    return shutil.copytree(two_steps, tmp_path / "run")


def files_of(workdir):
    return sorted(path.relative_to(workdir) for path in workdir.rglob("*"))


def test_the_last_saved_checkpoint_is_the_newest(tmp_path):
    """Also if a run is extended after its classifier's steps were counted."""
    run = written(tmp_path / "run", steps=(2, 302))
    assert resume(written(run, steps=(3,))) == 3


def test_the_newest_few_are_kept(workdir):
    written(workdir, steps=(1, 2, 3))
    assert steps_of(workdir / FOLDER) == [3, 2]
    saved = load_newest(workdir)
    assert (saved.step, saved.digest) == (newest(workdir).step, newest(workdir).digest)
    assert resume(workdir) == 3


def test_a_damaged_checkpoint_is_moved_aside_and_written_again(workdir, capsys):
    written(workdir)
    gcs = file_system(workdir)
    data = max(gcs.find(f"{workdir}/checkpoints/2/prompts/d"), key=gcs.size)
    flipped = bytearray(gcs.cat_file(data))
    flipped[len(flipped) // 2] ^= 4
    gcs.pipe_file(data, bytes(flipped))
    assert load_newest(workdir).step == 1
    assert resume(workdir) == 1
    assert f"{workdir / DAMAGED / '2'}" in capsys.readouterr().err
    assert (workdir / DAMAGED / "2").is_dir()
    written(workdir, steps=(2,))
    assert resume(workdir) == 2


def test_an_incomplete_checkpoint_in_a_bucket_is_ignored(bucket):
    """Its upload was interrupted; it is written again."""
    workdir = written(as_path(bucket) / "run")
    (workdir / "checkpoints" / "2" / "commit_success.txt").unlink()
    assert load_newest(workdir).step == 1
    assert resume(workdir) == 1
    written(workdir, steps=(2,))
    assert resume(workdir) == 2


def test_without_an_intact_checkpoint_nothing_is_moved(copied):
    for step in ("1", "2"):
        (copied / "checkpoints" / step / "meta" / "metadata").write_text("{")
    before = files_of(copied)
    for _ in range(2):
        refused(f"none of the 2 .*{copied}.* is intact", resume, copied)
    refused("is intact", load_newest, copied)
    assert files_of(copied) == before


@pytest.mark.parametrize(
    "failure",
    [
        PermissionError(errno.EACCES, "denied"),
        MemoryError(),
        # Of TensorStore, which does not say whether a file is damaged or the system refused it.
        ValueError("NOT_FOUND: PERMISSION_DENIED"),
    ],
)
def test_errors_other_than_damage_move_nothing(copied, monkeypatch, failure):
    """And no older checkpoint is used."""
    before, data = files_of(copied), next(copied.glob("checkpoints/2/prompts/**/d/*"))
    restore, read_bytes = ocp.StandardCheckpointer.restore, type(copied).read_bytes

    def fail(checkpointer, folder, *rest, **options):
        if folder.parent.name == "2":
            raise failure
        return restore(checkpointer, folder, *rest, **options)

    def refuse(file):
        if file == data and isinstance(failure, ValueError):
            raise PermissionError(errno.EACCES, "Permission denied")
        return read_bytes(file)

    with Checkpoints(copied) as checkpoints, monkeypatch.context() as patch:
        patch.setattr(ocp.StandardCheckpointer, "restore", fail)
        patch.setattr(type(copied), "read_bytes", refuse)
        for read in (checkpoints.resume, lambda: load_newest(copied)):
            refused(str(copied), read)
    assert files_of(copied) == before


def test_prompts_without_a_training_state_are_not_resumed(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, PROMPTS, {})
        checkpoints.wait()
    assert load_newest(tmp_path).step == 1
    refused("init_from", resume, tmp_path)


def test_a_path_of_any_characters(tmp_path):
    """Orbax would take such a path for a pattern, and lose what it writes there."""
    assert resume(written(tmp_path / "lr[0.01]" / "run", steps=(1,))) == 1


def test_on_a_disk(tmp_path):
    with locked(tmp_path / "run"):
        assert is_locked(tmp_path / "run")
        says = f"{tmp_path}.*process {os.getpid()}"
        with pytest.raises(LockedError, match=says), locked(tmp_path / "run"):
            pass
    assert not is_locked(tmp_path / "run")
    with locked(tmp_path / "run"):
        pass


def owned_by(workdir, process, host):
    (workdir / LOCK_FILE).write_text(f"process {process} on {host} since 2026-01-01")


@pytest.mark.process
def test_in_a_bucket(bucket):
    workdir = as_path(bucket) / "run"
    with locked(workdir):
        assert f"process {os.getpid()}" in (workdir / LOCK_FILE).read_text()
    assert not (workdir / LOCK_FILE).exists()
    owned_by(workdir, 1, "another-host")
    assert is_locked(workdir)
    says = f"another-host.*gcloud storage rm {workdir}/{LOCK_FILE}"
    with pytest.raises(LockedError, match=says), locked(workdir):
        pass
    # Another process of this host has it, and then has been killed.
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        owned_by(workdir, process.pid, platform.node())
        assert is_locked(workdir)
        with pytest.raises(LockedError), locked(workdir):
            pass
        process.kill()
    assert not is_locked(workdir)
    with locked(workdir):
        pass


@pytest.fixture(scope="module")
def shared(trained, tmp_path_factory):
    file = tmp_path_factory.mktemp("shared") / "prompts.safetensors"
    done = in_process("convert", "export", trained, file)
    assert f"wrote {file}: dpt prompts" in done.stdout
    return file


def test_a_prompt_file_has_the_same_bytes_and_a_description(shared, trained):
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


def test_a_prompt_file_replaces_a_workdir(shared, trained, files, tmp_path):
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


def test_saving_from_python_equals_export(shared, trained, predictor, tmp_path):
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


def test_a_prompt_file_as_the_workdir_of_a_training_is_refused(shared):
    command = ("main.py", f"--workdir={shared}")
    command_refused("--mode=eval", *command)
    command_refused("init_from", *command, "--mode=eval", "--config.init_from=x")


def test_files_that_are_not_prompt_files(shared, tmp_path):
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
def test_missing_or_wrong_entries_and_tensors(shared, tmp_path, change):
    """Entries that are None are left out."""
    with safetensors.safe_open(shared, "numpy") as opened:
        header = opened.metadata() | change.get("header", {})
    if changed := change.get("settings"):
        header["settings"] = json.dumps(json.loads(header["settings"]) | changed)
    tensors = safetensors.numpy.load_file(shared) | change.get("tensors", {})
    tensors, header = ({k: x for k, x in y.items() if x is not None} for y in (tensors, header))
    safetensors.numpy.save_file(tensors, tmp_path / "odd.safetensors", header)
    refused(r"odd\.safetensors", dpt_jax.load, tmp_path / "odd.safetensors")


def test_export_errors(trained, tmp_path):
    for source, name in ((trained, "a.bin"), (trained, "no/a.safetensors"), (tmp_path, "")):
        target = tmp_path / (name or "a.safetensors")
        command_refused(tmp_path / name, "convert", "export", source, target)
