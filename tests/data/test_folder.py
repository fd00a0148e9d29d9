"""Folders as users have them: with macOS files, other files, and names in any form."""

import pickle
import unicodedata

import pytest
from PIL import Image

from dpt_jax.data.coop import read_coop
from dpt_jax.data.folder import find_images, read_folder
from dpt_jax.data.records import Example
from tests.helpers import coop_trees
from tests.helpers.commands import refused
from tests.helpers.object_store import put_folder


def images(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / name, "PNG")


def apple_double(folder):
    """The file that macOS leaves beside each file on another file system."""
    for file in [path for path in folder.rglob("*") if path.is_file()]:
        (file.parent / f"._{file.name}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        ")
        (file.parent / ".DS_Store").write_bytes(b"x")


def test_a_macs_own_files_are_no_images(tmp_path):
    images(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/2.png", "test/b/2.png")
    before, found = read_folder(tmp_path), find_images([str(tmp_path / "test")])
    apple_double(tmp_path)
    assert read_folder(tmp_path) == before
    assert find_images([str(tmp_path / "test")]) == found


def test_folders_of_classes(tmp_path, capfd):
    """By their names, with images of any ending. Other files are counted."""
    images(tmp_path, "test/b_c/2.JPG", "test/b_c/1.png", "test/a/1.webp", "train/a/x.png")
    images(tmp_path, "train/b c/y.png", "val/a/v.png", "val/other/w.png", ".cache/a/x.png")
    read_folder(tmp_path)
    assert "other" in capfd.readouterr().out  # which neither train/ nor test/ has
    for name in ("train/a/5.raw", "train/a/6.raw", "test/a/notes", "test/a/.hidden"):
        (tmp_path / name).touch()
    images(tmp_path, "test/a/more/deep/3.png", "train/4.png")
    found = read_folder(tmp_path)
    assert found.classnames == ("a", "b c")
    test = [("test/a/1.webp", 0), ("test/b_c/1.png", 1), ("test/b_c/2.JPG", 1)]
    assert found.test == [Example(*each) for each in test]
    assert found.train == [Example("train/a/x.png", 0), Example("train/b c/y.png", 1)]
    assert found.val == [Example("val/a/v.png", 0)]
    assert "5 files are left out (2 .png, 2 .raw, 1 other)" in capfd.readouterr().out
    assert len(find_images([str(tmp_path / "train")])) == 3
    assert "2 files are left out (2 .raw)" in capfd.readouterr().err


def test_folders_that_are_not_a_dataset_are_named(tmp_path):
    for name in ("none", "test", "test/empty"):
        refused(str(tmp_path), read_folder, tmp_path)
        (tmp_path / name).mkdir()


def test_predict_finds_what_training_finds_also_by_links(tmp_path):
    """A link that leads back up ends there."""
    images(tmp_path, "data/test/a/1.png", "elsewhere/b/2.png")
    (tmp_path / "data" / "test" / "b").symlink_to(tmp_path / "elsewhere" / "b")
    (tmp_path / "elsewhere" / "b" / "back").symlink_to(tmp_path / "data")
    tested = [str(tmp_path / "data" / e.path) for e in read_folder(tmp_path / "data").test]
    assert find_images([str(tmp_path / "data" / "test")]) == tested
    assert [file[-7:] for file in tested] == ["a/1.png", "b/2.png"]


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_unicode_forms_of_one_name_are_one_class(tmp_path, forms):
    """A Mac writes é as two characters, Linux as one."""
    train, test = (unicodedata.normalize(form, "café_crème") for form in forms)
    images(tmp_path, f"train/{train}/1.png", f"test/{test}/2.png", "train/dog/3.png")
    images(tmp_path, "test/dog/4.png")
    found = read_folder(tmp_path)
    assert found.classnames == (unicodedata.normalize("NFC", "café crème"), "dog")
    assert found.train == [Example(f"train/{train}/1.png", 0), Example("train/dog/3.png", 1)]
    assert found.read(found.test[0].path).size == (4, 4)
    images(tmp_path, "test/café crème/5.png")
    assert [example.label for example in read_folder(tmp_path).test] == [0, 0, 1]


@pytest.mark.parametrize("name", ["_", " ", "a\nb"])
def test_a_folder_without_a_name_is_refused(tmp_path, name):
    images(tmp_path, f"test/{name}/1.png", "test/a/2.png")
    refused("is not a class name", read_folder, tmp_path)


def test_images_of_a_bucket(bucket, tmp_path):
    images(tmp_path, "train/a/1.png", "test/a/2.png", "test/a/._3.png", "test/a/b/4.png")
    put_folder(tmp_path, bucket)
    found = read_folder(bucket)
    assert found.train == [Example("train/a/1.png", 0)]
    assert found.test == [Example("test/a/2.png", 0)]
    for read in (found.read, pickle.loads(pickle.dumps(found.read))):  # as loader processes get it
        assert read("test/a/2.png").size == (4, 4)
    below = [f"{bucket}/test/a/2.png", f"{bucket}/test/a/b/4.png"]
    assert find_images([f"{bucket}/test"]) == find_images([f"{bucket}/test/**/*.png"]) == below
    refused(rf"{bucket}/none does not exist", find_images, [f"{bucket}/none"])
    refused("nobody-has-this", find_images, ["gs://nobody-has-this/x"])


@pytest.mark.parametrize("name", ["dtd", "imagenet"])
def test_a_paper_dataset_of_a_bucket(bucket, tmp_path, name):
    coop_trees.make(name, tmp_path)
    put_folder(tmp_path, bucket)
    assert read_coop(name, bucket)[1:] == read_coop(name, tmp_path)[1:]
