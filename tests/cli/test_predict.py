"""`dpt-jax predict`: images in, answers as JSON, as a table and as text; and how commands end."""

import csv
import errno
import json
import pathlib
import shutil

import numpy as np
import pytest
from aiohttp import ClientOSError
from gcsfs.retry import HttpError

from dpt_jax.cli import ending, predict
from dpt_jax.data.folder import find_images
from dpt_jax.errors import BUG, INTERRUPTED, USER_ERROR, UserError
from tests.helpers.commands import assert_refused, command, command_refused, in_process, refused
from tests.helpers.configs import IMAGES
from tests.helpers.runs import results_of

pytestmark = pytest.mark.compiles


def test_images_are_found_once_and_in_order(tmp_path):
    for name in ("b/2.png", "b/1.JPG", "a.txt", "b/c/3.png", "b/.hidden/4.png", "b/notes.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    below = [str(tmp_path / name) for name in ("b/1.JPG", "b/2.png", "b/c/3.png")]
    assert find_images([str(tmp_path / "b"), below[0]]) == below
    text = str(tmp_path / "a.txt")
    assert find_images([str(tmp_path / "**" / "*.png"), text]) == [*below[1:], text]
    (tmp_path / "[odd].png").touch()
    assert find_images([str(tmp_path / "[odd].png")]) == [str(tmp_path / "[odd].png")]
    for wrong in ("none.png", "*.bmp", "b/c/*.jpg"):
        refused("does not exist", find_images, [str(tmp_path / wrong)])
    (tmp_path / "empty").mkdir()
    refused("no images there", find_images, [str(tmp_path / "empty")])


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, files):
    """A folder with images, a file that is not one, and one whose name is a formula."""
    folder = tmp_path_factory.mktemp("mixed")
    shutil.copy(files[0], folder / "a.png")
    shutil.copy(files[1], folder / "=1+1.png")
    (folder / "broken.png").write_bytes(pathlib.Path(files[2]).read_bytes()[:60])
    return folder


def test_the_accuracy_on_folders_that_are_named_as_classes(trained):
    done = in_process("predict", trained, IMAGES / "test", "--json")
    accuracy = results_of(trained)["accuracy"]
    assert f"{100 * accuracy:.1f} % of 18 images" in done.stderr
    assert len(json.loads(done.stdout)) == 18
    done = in_process("predict", trained, IMAGES / "test" / "yin_yang")
    assert "% of 3 images" in done.stderr


def test_json(trained, predictor, mixed, files):
    done = in_process("predict", trained, "--top=2", "--json", mixed)
    told = {pathlib.Path(one["path"]).name: one for one in json.loads(done.stdout)}
    assert list(told) == ["=1+1.png", "a.png", "broken.png"]
    assert "cannot be read as an image" in told["broken.png"]["error"]
    assert "1 of 3 images could not be read" in done.stderr
    for name, file in (("a.png", files[0]), ("=1+1.png", files[1])):
        (own,) = predictor.predict_proba(file)
        best = np.argsort(-own)[:2]
        found = told[name]["predictions"]
        assert [one["class"] for one in found] == [predictor.classnames[c] for c in best]
        probabilities = [one["probability"] for one in found]
        np.testing.assert_allclose(probabilities, own[best], rtol=1e-4)


@pytest.mark.parametrize("flag", ["--json", "--csv=out.csv"])
def test_answers_are_written_one_by_one(trained, monkeypatch, tmp_path, flag):
    def stopped(*_):
        yield {"path": "a.png", "error": "why"}
        raise UserError("stopped half way")

    monkeypatch.setattr(predict, "_classify", stopped)
    done = in_process("predict", trained, IMAGES, flag, check=False, cwd=tmp_path)
    if flag == "--json":
        assert json.loads(f"{done.stdout}]") == [{"path": "a.png", "error": "why"}]
    else:
        assert "a.png,why" in (tmp_path / "out.csv").read_text()


def test_csv_and_other_classes(trained, mixed, tmp_path):
    (tmp_path / "names.txt").write_text("a zebra\n\n@handle\nA Zebra\n", encoding="utf-8")
    options = [f"--classes={tmp_path / 'names.txt'}", f"--csv={tmp_path / 'out.csv'}"]
    options += [str(trained), "=1+1.png", "a.png"]
    done = in_process("predict", *options, cwd=mixed)
    assert "2 images" in done.stdout
    assert "CLIP cannot tell them apart: 'a zebra' and 'A Zebra'." in done.stderr
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["path"] for line in lines] == ["'=1+1.png", "a.png"]  # text, not a formula
    for line in lines:
        names = {line[f"class_{i}"] for i in (1, 2, 3)}
        assert names == {"a zebra", "'@handle", "A Zebra"}
        probabilities = [float(line[f"probability_{i}"]) for i in (1, 2, 3)]
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("predict TRAINED", "PATH"),
        ("predict /nowhere IMAGES", "/nowhere"),
        ("predict TRAINED /nowhere/a.png", "/nowhere/a.png does not exist"),
        ("predict TRAINED README.md", "none of the 1 images could be read"),
        ("predict TRAINED IMAGES --json --csv=out.csv", "not both"),
        ("predict TRAINED IMAGES --csv=/nowhere/out.csv", "/nowhere/out.csv"),
        ("predict TRAINED IMAGES --top=0", "top"),
        ("predict --workdir=TRAINED IMAGES", "without --workdir"),
        ("report --workdir=TRAINED", "without --workdir"),
        ("visualize TRAINED IMAGES --out=README.md", "--out: README.md cannot be created"),
        ("explain TRAINED x", "x"),
        ("convert export TRAINED", "DST"),
        ("report", "FOLDER"),
        ("report /nowhere", "is not a folder"),
        ("check --clip=/nowhere", "/nowhere"),
        ("train --cluster", "could not be connected"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2(trained, arguments, says):
    arguments = arguments.replace("TRAINED", str(trained)).replace("IMAGES", str(IMAGES))
    command_refused(says, *arguments.split())


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UserError("two\nlines"), USER_ERROR, "two lines"),
        (KeyboardInterrupt(), INTERRUPTED, "stopped"),
        (OSError(errno.ENOSPC, "No space left on device", "/a/b"), USER_ERROR, "/a/b"),
        (PermissionError(errno.EROFS, "Read-only file system", "/a/b"), USER_ERROR, "/a/b"),
        (HttpError({"code": 503, "message": "try later"}), USER_ERROR, "bucket"),
        (ClientOSError(errno.ENOENT, "Name or service not known"), USER_ERROR, "bucket"),
        (KeyError("x"), BUG, "KeyError"),
        (RuntimeError("x"), BUG, "RuntimeError"),
    ],
)
def test_exit_codes_and_sentences(error, code, says):
    found, sentence = ending(error)
    assert found == code
    assert says in sentence
    assert "\n" not in sentence


@pytest.mark.process
def test_a_missing_backend(tmp_path):
    done = command("main.py", f"--workdir={tmp_path}", check=False, JAX_PLATFORMS="cuda")
    assert_refused(done, "JAX_PLATFORMS='cuda'")
    assert "pip install" in done.stderr


def test_debug_keeps_the_traceback(tmp_path):
    with pytest.raises(UserError, match=r"train\.epochs"):
        in_process("main.py", "--config.train.epochs=0", f"--workdir={tmp_path}", "--debug")


@pytest.mark.parametrize("key", ["workdir", "config.clip.weights"])
def test_a_missing_bucket(key, store, tmp_path):
    arguments = [f"--workdir={tmp_path / 'run'}", f"--{key}=gs://nobody-has-this/run"]
    done = command_refused("nobody-has-this", "main.py", *arguments)
    assert len(done.stderr.strip().splitlines()) == 1
