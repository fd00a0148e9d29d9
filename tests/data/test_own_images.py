"""The user's own images: folders, archives and lists, their split, and what is checked first."""

import pickle
import shutil
import tarfile
import unicodedata
import zipfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import dpt_jax
from configs import coop
from dpt_jax.config import from_command_line
from dpt_jax.data.dataset import check_trainable, load_dataset, look
from dpt_jax.data.folder import find_images, read_folder
from dpt_jax.data.records import Example
from dpt_jax.errors import UserError
from tests.helpers.commands import command_refused, in_process, refused
from tests.helpers.configs import small_flags
from tests.helpers.object_store import put_folder


def images(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / name, "PNG")


def test_folders_of_classes(tmp_path, capfd):
    """By their names, with images of any ending. Other files are counted."""
    images(tmp_path, "test/b_c/2.JPG", "test/b_c/1.png", "test/a/1.webp", "train/a/x.png")
    images(tmp_path, "train/b c/y.png", "val/a/v.png", "val/other/w.png", ".cache/a/x.png")
    read_folder(tmp_path)
    assert "other" in capfd.readouterr().out  # which neither train/ nor test/ has
    for name in (
        "train/a/5.raw",
        "train/a/6.raw",
        "test/a/notes",
        "test/a/.hidden",
        "test/a/._1.webp",
        "test/a/.DS_Store",
    ):  # the last two are of macOS
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
    assert len(find_images([str(tmp_path / "test")])) == 4
    assert "2 files are left out (2 .raw)" in capfd.readouterr().err


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


def test_folders_that_are_not_a_dataset_are_named(tmp_path):
    for name in ("none", "test", "test/empty"):
        refused(str(tmp_path), read_folder, tmp_path)
        (tmp_path / name).mkdir()
    for name in ("_", " ", "a\nb"):
        images(tmp_path / "named", f"test/{name}/1.png", "test/a/2.png")
        refused("is not a class name", read_folder, tmp_path / "named")
        shutil.rmtree(tmp_path / "named")


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


CLASSES = {"cat": 10, "red_fox": 5, "dog": 4}
# By class: training, validation and test images, if a fifth of each class is held out.
SPLIT = {"cat": (6, 2, 2), "dog": (2, 1, 1), "red fox": (3, 1, 1)}


@pytest.fixture
def photos(tmp_path):
    """Folders of classes without a split. No two images are the same."""
    generator = np.random.default_rng(0)
    for classname, count in CLASSES.items():
        for number in range(count):
            pixels = generator.integers(0, 255, (12, 16, 3), np.uint8)
            save(tmp_path / "photos" / classname / f"{number}.png", pixels)
    return tmp_path / "photos"


def save(file, pixels, **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file, **options)


def counts(dataset):
    splits = (dataset.train, dataset.val, dataset.test)
    return {
        name: tuple(sum(e.label == label for e in split) for split in splits)
        for label, name in enumerate(dataset.classnames)
    }


def config_of(root, **settings):
    config = coop.get_config("folder")
    config.dataset.root = str(root)
    config.update_from_flattened_dict({f"dataset.{key}": x for key, x in settings.items()})
    return config


def look_at(root, **settings):
    config = config_of(root, **settings)
    return look(load_dataset(config.dataset, 1), config)


def test_a_split_is_drawn_by_class_and_can_be_given_again(photos, tmp_path):
    (photos / "cat" / "0.png").rename(photos / "cat" / ' a, "b"\u2028.png')
    found = read_folder(photos)
    assert counts(found) == SPLIT
    every = [example.path for split in found[2:5] for example in split]
    assert len({*every}) == len(every) == sum(CLASSES.values())
    assert read_folder(photos) == found
    (tmp_path / "again.csv").write_text(found.split)
    save(photos / "cat" / "new.png", np.zeros((4, 4, 3), np.uint8))
    assert read_folder(photos, tmp_path / "again.csv") == found
    assert read_folder(photos) != found
    assert counts(read_folder(photos, test_fraction=0.5))["dog"] == (1, 1, 2)
    everything = read_folder(photos, test_fraction=1)
    assert (len(everything.test), everything.train) == (sum(CLASSES.values()) + 1, [])


def test_copies_of_an_image_are_in_one_split(photos):
    for number in range(1, 10):
        shutil.copy(photos / "cat" / "0.png", photos / "cat" / f"copy{number}.png")
    found = read_folder(photos)
    cats = [{e.path for e in split if e.label == 0} for split in found[2:5]]
    assert sum("cat/copy1.png" in split for split in cats) == 1
    assert all({f"cat/copy{n}.png" for n in range(1, 10)} <= s for s in cats if "cat/0.png" in s)
    look_at(photos)


def test_what_cannot_be_split_is_named(photos, tmp_path):
    """A class of one image, and folders that are misnamed splits."""
    save(photos / "owl" / "1.png", np.zeros((4, 4, 3), np.uint8))
    refused("'owl'", read_folder, photos)
    shutil.rmtree(photos / "owl")
    (tmp_path / "data").mkdir()
    photos.rename(tmp_path / "data" / "train")
    refused("test/", read_folder, tmp_path / "data")
    assert counts(read_folder(tmp_path / "data" / "train")) == SPLIT
    (tmp_path / "data" / "valid" / "cat").mkdir(parents=True)
    refused("valid", read_folder, tmp_path / "data")
    (tmp_path / "data" / "train").rename(tmp_path / "data" / "Training")
    refused("Training", read_folder, tmp_path / "data")


@pytest.mark.parametrize("kind", ["zip", "gztar", "tar"])
@pytest.mark.parametrize("top", [True, False])
def test_an_archive_is_its_folder(kind, top, photos, tmp_path, monkeypatch):
    """With or without a folder around all of it, and with the files that macOS adds."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    expected = read_folder(photos)
    (tmp_path / "__MACOSX").mkdir()
    base = {"root_dir": tmp_path, "base_dir": "photos"} if top else {"root_dir": photos}
    archive = shutil.make_archive(str(tmp_path / "mine"), kind, **base)
    if kind == "zip":
        with zipfile.ZipFile(archive, "a") as opened:
            opened.writestr("__MACOSX/cat/._0.png", b"\0\5\x16\7")
    for _ in range(2):
        found = read_folder(archive)
        assert found[1:] == expected[1:]
    assert found.read(found.test[0].path).size == (16, 12)
    assert len([*(tmp_path / "cache" / "dpt_jax" / "archives").iterdir()]) == 1


def test_an_archive_never_writes_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names = ("../../../out/cat/1.png", str(tmp_path / "out"))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    for number, name in enumerate(names):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as archive:
            archive.addfile(tarfile.TarInfo(name))
    (tmp_path / "no.zip").write_bytes(b"PK but no archive")
    before = {*tmp_path.iterdir(), tmp_path / "cache"}
    for name in ("a.zip", "0.tar", "1.tar", "no.zip"):
        with pytest.raises(UserError):
            read_folder(tmp_path / name)
    assert {*tmp_path.iterdir()} == before


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("split", [True, False])
def test_a_list_of_paths_and_labels(suffix, split, photos):
    whole = read_folder(photos)
    rows = [line.split(",") for line in whole.split.splitlines()[1:]]
    columns = ("path", "label", "split") if split else ("path", "label")
    lists = pd.DataFrame([row[: len(columns)] for row in rows], columns=columns)
    text = lists.to_csv(index=False)
    if suffix == ".jsonl":
        text = lists.to_json(orient="records", lines=True)
    file = photos / f"mine{suffix}"
    file.write_text(f"\ufeff{text}")
    found = read_folder(file)
    assert counts(found) == SPLIT
    if split:
        assert found[:5] == whole[:5]


def test_wrong_lists_and_lists_of_other_images_are_named(photos, tmp_path):
    file = tmp_path / "mine.csv"
    for text in (
        "path,label\n",
        "image,class\na.png,cat",
        "path,label\na.png,cat\na.png,dog",
        "path,label,split\na.png,cat,training",
        "path,label,split\na.png,cat,train\nb.png,cat,",
    ):
        file.write_text(text)
        refused(r"mine\.csv", read_folder, file)
    file.write_text("path,label,split\ncat/none.png,cat,test\n")
    refused(r"cat/none\.png", read_folder, photos, file)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--config=coop", "--config.dataset.root", "photos"], "folder"),
        (["--config=dpt", "--config.dataset.name=dtd", "--config.dataset.root=DATA"], "dtd"),
        (["--config=dpt"], "digits"),
    ],
)
def test_a_root_without_a_dataset_name_means_own_images(arguments, name):
    """With the template and CLIP for folders, not those for the digits."""
    given, _ = from_command_line(arguments)
    expected = coop.get_config(name).dataset.template
    assert (given.config.dataset.name, given.config.dataset.template) == (name, expected)


def test_the_table_counts_rotated_and_dropped_images(photos):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(photos / "cat" / "0.png", np.zeros((12, 16, 3), np.uint8), exif=exif)
    config = config_of(photos, shots=-1)
    config.train.batch_size = 4
    said = look(load_dataset(config.dataset, 1), config)
    rows = [line.split() for line in said.splitlines()]
    assert ["cat", "6", "2", "2"] in rows
    assert ["all", "11", "4", "4"] in rows
    assert "cat/0.png" in said
    assert "leaves out 3 of 11" in said


def test_a_choice_of_settings_needs_two_images_of_each_class(photos):
    config = config_of(photos, shots=2)
    config.classifier.select = "support"
    check_trainable(load_dataset(config.dataset, 1), config)
    config.dataset.shots = 1
    refused("cat", check_trainable, load_dataset(config.dataset, 1), config)


@pytest.mark.parametrize("shots", [-1, 2])
def test_a_broken_image_is_found_before_the_first_step(shots, photos):
    """Even if its header is intact, and an epoch might not draw it."""
    found = load_dataset(config_of(photos, shots=shots).dataset, 1)
    for example in (found.train[0], found.test[0]):
        file = photos / example.path
        file.write_bytes(file.read_bytes()[:300])
    refused("unreadable images: 2", look_at, photos, shots=shots)
    assert "left out: 2" in look_at(photos, shots=shots, on_error="skip")
    for example in found.train:
        if example.label == found.train[0].label:
            (photos / example.path).write_bytes(b"")
    refused(found.classnames[found.train[0].label], look_at, photos, shots=shots, on_error="skip")


def test_what_would_give_wrong_accuracies_is_refused_unless_asked_for(photos, tmp_path):
    found = read_folder(photos)
    for split in ("train", "test"):
        for example in getattr(found, split):
            target = tmp_path / "data" / split / example.path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(photos / example.path, target)
    data = tmp_path / "data"
    look_at(data)
    shutil.copy(photos / found.train[0].path, data / "test" / "cat" / "again.png")
    refused(r"test/cat/again\.png", look_at, data)
    assert "again.png" in look_at(data, strict=False)
    with pytest.raises(UserError, match=r"again\.png"):  # also if only a classifier is trained
        dpt_jax.fit(data, method="zslp", clip="tiny-clip", verbose=False)
    (data / "test" / "cat" / "again.png").unlink()
    shutil.rmtree(data / "test" / "dog")
    refused("dog", look_at, data)
    assert "dog" in look_at(data, strict=False)


@pytest.mark.compiles
def test_from_photos_to_a_page(photos, tiny_clip_dir, tmp_path):
    """What a newcomer does: look, train, resume after adding photos, predict, and see the page."""
    run = tmp_path / "run"
    flags = small_flags(tiny_clip_dir, dataset__root=photos, train__epochs=2)
    train = ("train", "--config=coop", *flags, f"--workdir={run}")
    planned = in_process(*train, "--plan")
    assert ["red", "fox", "3", "1", "1"] in [line.split() for line in planned.stdout.splitlines()]
    assert not run.exists()
    done = in_process(*train)
    assert f"results: {run / 'results.json'}" in done.stdout
    assert dpt_jax.results(run).n.tolist() == [4]
    before = (run / "split.csv").read_text()
    for number in range(20):
        save(photos / "cat" / f"new{number}.png", np.full((4, 4, 3), number, np.uint8))
    in_process(*train, "--config.train.epochs=3", "--allow_changes")
    in_process("eval", f"--workdir={run}")
    assert dpt_jax.results(run).n.tolist() == [4]
    assert (run / "split.csv").read_text() == before
    other = tmp_path / "other" / "cat"
    shutil.copytree(photos / "cat", other)
    there = f"--config.dataset.root={other.parent}"
    command_refused("dataset.split", "eval", f"--workdir={run}", there)
    answers = in_process("predict", run, photos / "dog")
    assert len(answers.stdout.splitlines()) == CLASSES["dog"]
    in_process("report", run, "--html")
    assert (run / "report.html").stat().st_size > 10_000
