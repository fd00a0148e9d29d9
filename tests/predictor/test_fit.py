"""Training from Python."""

import json
import tempfile

import numpy as np
import pytest
from PIL import Image

import dpt_jax
from dpt_jax.data.folder import read_folder
from dpt_jax.errors import UserError
from dpt_jax.training.checkpoints import load_newest
from tests.helpers.commands import refused
from tests.helpers.golden import SMALL

IMAGES = SMALL / "images"
SETTINGS = {"shots": -1, "epochs": 2, "top_k": np.int64(3)}
SETTINGS |= {"text_prompt__length": 4, "visual_prompt.length": 3}


@pytest.fixture(scope="module")
def memory():
    """The training images of the folder as a path, a PIL image and arrays, and their names."""
    whole = read_folder(IMAGES)
    paths = [IMAGES / example.path for example in whole.train]
    images = [*paths[:1], Image.open(paths[1]), *(np.asarray(whole.read(p)) for p in paths[2:])]
    return images, [whole.classnames[example.label] for example in whole.train]


@pytest.mark.compiles
def test_a_folder_is_a_run_of_the_command_line(trained, clip_dir, tmp_path, files):
    """The same bits and files, also if a callback ends it and the same call resumes."""
    epochs = []

    def end(metrics):
        epochs.append(metrics.pop("epoch"))
        return len(epochs) == 1

    for _ in range(2):
        given = {"clip": str(clip_dir), "workdir": tmp_path / "run", "callbacks": [end]}
        classifier = dpt_jax.fit(IMAGES, **given, **SETTINGS)
    assert epochs == [1, 2]
    assert load_newest(tmp_path / "run").digest == load_newest(trained).digest
    expected = dpt_jax.load(trained)
    np.testing.assert_array_equal(classifier.predict_proba(files), expected.predict_proba(files))
    classifier.save(tmp_path / "prompts.safetensors")
    assert dpt_jax.load(tmp_path / "prompts.safetensors").predict(files) == expected.predict(files)
    names = {file.name for file in trained.iterdir() if "tfevents" not in file.name}
    assert names - {"predictions.npz"} <= {file.name for file in (tmp_path / "run").iterdir()}
    results = [json.loads((w / "results.json").read_text()) for w in (trained, tmp_path / "run")]
    assert results[0] == results[1]


@pytest.mark.compiles
def test_images_in_memory_are_those_of_the_folder(
    trained, clip_dir, memory, tmp_path, monkeypatch, capsys
):
    """The same bits, silent, and nothing is left on the disk."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    metrics: list[dict[str, float]] = []
    given = {"clip": str(clip_dir), "validation": memory, "verbose": False}
    classifier = dpt_jax.fit(*memory, callbacks=[metrics.append], **given, **SETTINGS)
    assert [0 <= one["val_accuracy"] <= 1 for one in metrics] == [True, True]
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []
    classifier.save(tmp_path / "prompts.safetensors")
    assert load_newest(tmp_path / "prompts.safetensors").digest == load_newest(trained).digest


def test_the_record_is_of_the_pixels(memory):
    from dpt_jax.data.memory import in_memory

    images, names = memory
    paths = [example.path for example in in_memory(images, names, validation=memory).train]
    assert paths[0] == str(images[0])
    assert len({*paths}) == len(paths)
    other = [*images[:-1], images[-1] ^ np.uint8(1)]
    changed = [example.path for example in in_memory(other, names).train]
    assert [a == b for a, b in zip(paths, changed, strict=True)] == [True] * 11 + [False]


def test_a_missing_or_broken_file_is_named_before_training(clip_dir, tmp_path, capsys):
    """A missing file even before CLIP is loaded."""
    whole = read_folder(IMAGES)
    files = [IMAGES / example.path for example in whole.train]
    labels = [whole.classnames[example.label] for example in whole.train]
    missing, broken = tmp_path / "none.png", tmp_path / "broken.png"
    broken.write_bytes(files[0].read_bytes()[:300])
    for file, clip in ((missing, "no-such-clip"), (broken, clip_dir)):
        with pytest.raises(UserError, match=file.name):
            dpt_jax.fit([*files, file], [*labels, labels[0]], clip=str(clip), **SETTINGS)
        assert "Training" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"epcohs": 3}, "train.epochs"),
        ({"length": 3}, "visual_prompt__length"),
        ({"epochs": 3, "train__epochs": 3}, "train__epochs"),
        ({"epochs": "3"}, "train.epochs"),
        ({"epochs": 0}, "train.epochs"),
        ({"root": "photos"}, "dataset.root"),
        ({"method": "dtp"}, "dtp"),
        ({"labels": None}, "labels"),
        ({"labels": None, "images": "photo.jpg"}, "labels"),
        ({"labels": ["dog"]}, "12 and 1"),
        ({"labels": [3.5] * 12}, "3.5"),
        ({"labels": [0] * 11 + [7]}, "7"),
        ({"classnames": ["dog", "cat"]}, "airplane"),
        ({"labels": "zero one two"}, "zero one two"),
        ({"labels": np.eye(12)}, "array"),
        ({"labels": 5}, "5"),
        ({"images": None}, "None"),
        ({"validation": ([], [])}, "0 and 0"),
        ({"validation": ([],)}, "validation"),
        ({"callbacks": print}, "callbacks"),
        ({"workdir": "prompts.safetensors"}, "prompts.safetensors"),
    ],
)
def test_wrong_input_is_named(memory, clip_dir, arguments, named):
    images, labels = memory
    given = {"images": images, "labels": labels, "clip": str(clip_dir), **arguments}
    refused(named, dpt_jax.fit, **given)
