"""The paper's datasets from tensorflow-datasets: its labels, its splits, its records."""

import io
import json
import pickle
import random
import tarfile

import numpy as np
import pytest

from dpt_jax.data.catalogue import CATALOGUE
from dpt_jax.data.tfds import read_tfds
from dpt_jax.errors import UserError
from tests.helpers import tfds_trees
from tests.helpers.commands import command
from tests.helpers.golden import DATA
from tests.helpers.object_store import put_folder

GOLDEN = json.loads((DATA / "classnames.json").read_text())
THERE = [name for name, benchmark in CATALOGUE.items() if benchmark.tfds]
TWO_CLASSES = tfds_trees.TWO_CLASSES


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """TFDS's data directory with a tiny copy of every dataset."""
    directory = tmp_path_factory.mktemp("tfds")
    command("-m", "tests.helpers.tfds_trees", str(directory))
    return directory


def labels_of(name, root):
    """As TFDS wrote them beside the data."""
    (file,) = (root / CATALOGUE[name].tfds.builder).rglob("label.labels.txt")
    return file.read_text().splitlines()


@pytest.mark.parametrize("name", GOLDEN)
def test_labels_become_the_published_class_names(name, root):
    found, published = (
        list(CATALOGUE[name].tfds.classnames(labels_of(name, root)).values()),
        GOLDEN[name]["classnames"],
    )
    if not GOLDEN[name]["ordered"]:
        found, published = sorted(found), sorted(published)
    assert found == published


@pytest.mark.parametrize("name", [name for name in THERE if name != "ucf101"])
def test_every_dataset_is_read_by_position(name, root):
    found, use = read_tfds(name, str(root)), CATALOGUE[name].tfds
    per_class = {
        split: tfds_trees.PER_CLASS * (split.count("+") + 1)
        for split in (use.train, use.val, use.test)
    }
    whole = (
        [(found.train, use.train), (found.val, use.val), (found.test, use.test)] if use.test else []
    )
    for examples, split in whole:
        assert len(examples) == (per_class[split] * len(found.classnames) if split else 0)
    by_tfds = {
        c: label for label, c in CATALOGUE[name].tfds.classnames(labels_of(name, root)).items()
    }
    for example in found.test[:5]:
        # Each label has its own greys, see tfds_trees.
        label = by_tfds[found.classnames[example.label]]
        names = TWO_CLASSES if name in ("imagenet_a", "imagenet_r") else labels_of(name, root)
        shades = {(7 * names.index(label) + i) % 250 for i in range(tfds_trees.PER_CLASS)}
        assert int(np.asarray(found.read(example.path)).mean().round()) in shades


def test_a_copy_of_what_is_needed_is_read_from_a_bucket(root, bucket, tmp_path, monkeypatch):
    """And another dataset, or one that is not prepared there, is not asked for."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("dtd", "eurosat"):
        put_folder(root / name, f"{bucket}/tfds/{name}")
    found, expected = read_tfds("dtd", f"{bucket}/tfds"), read_tfds("dtd", str(root))
    assert found[1:] == expected[1:]
    path = found.train[3].path
    np.testing.assert_array_equal(found.read(path), expected.read(path))
    copied = [file.name for file in tmp_path.rglob("*") if file.is_file()]
    assert any("dtd-train.array_record" in name for name in copied)
    assert not any("eurosat" in name for name in copied)
    with pytest.raises(UserError, match=rf"{bucket}/tfds has no food101: prepare it on a disk"):
        read_tfds("food101", f"{bucket}/tfds")


@pytest.mark.process
@pytest.mark.slow
def test_of_a_video_the_middle_frame_is_read(root):
    """In a process of its own, since this dataset needs TensorFlow to be read."""
    code = (
        "import numpy as np; from dpt_jax.data.tfds import read_tfds; "
        f"found = read_tfds('ucf101', {str(root)!r}); example = found.test[0]; "
        "print('read', example.label, len(found.test), np.asarray(found.read(example.path)).mean())"
    )
    printed = command("-c", code).stdout.splitlines()
    _, label, images, grey = next(line for line in printed if line.startswith("read")).split()
    assert int(images) == tfds_trees.PER_CLASS * 101
    shades = {
        (7 * int(label) + i) % 250 + 1 for i in range(tfds_trees.PER_CLASS)
    }  # frames 0, 1, 2 are s, s + 1, s + 2
    assert round(float(grey)) in shades


WITHOUT_TENSORFLOW = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] != "tensorflow":
            return self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
from dpt_jax.data.dataset import load_dataset
from configs import dpt
from dpt_jax.errors import UserError
"""


@pytest.mark.process
def test_prepared_data_are_read_without_tensorflow(root):
    """What is to be prepared, and UCF101, need it, as a sentence says."""
    code = f"""
from dpt_jax.data.tfds import read_tfds
config = dpt.get_config("dtd").dataset
config.source, config.root, config.shots = "tfds", {str(root)!r}, 2
found = load_dataset(config, seed=3)
print(*[example.path for example in found.train], found.read(found.test[0].path).size)
for name, place in (("dtd", "/nowhere"), ("ucf101", config.root)):
    try:
        read_tfds(name, place)
    except UserError as reason:
        print(reason)
"""
    read, *refused = command("-c", WITHOUT_TENSORFLOW + code).stdout.splitlines()
    *paths, width, height = read.split()
    whole = read_tfds("dtd", str(root))
    random.seed(3)
    by_label = {}
    for example in whole.train:
        by_label.setdefault(example.label, []).append(example)
    assert paths == [e.path for own in by_label.values() for e in random.sample(own, 2)]
    assert (width, height) == ("(12,", "9)")
    for name, sentence in zip(("dtd", "ucf101"), refused, strict=True):
        assert f"needs tensorflow for {name}" in sentence


def test_a_dataset_of_one_split_is_divided_by_the_published_rule(root):
    found = read_tfds("eurosat", str(root))
    labels = np.load(next((root / "eurosat").rglob("labels-train.npy"))).tolist()
    random.seed(1)
    expected = [], [], []
    for label in dict.fromkeys(labels):
        own = [f"train/{i}" for i, x in enumerate(labels) if x == label]
        random.shuffle(own)
        for part, chosen in zip(expected, (own[:2], own[2:3], own[3:]), strict=True):
            part += [(path, label) for path in chosen]
    assert (
        tuple([tuple(e) for e in part] for part in (found.train, found.val, found.test)) == expected
    )


def test_loader_processes_read_records(root):
    """What they get of the dataset reads the same."""
    found = read_tfds("eurosat", str(root))
    path, read = found.test[0].path, pickle.loads(pickle.dumps(found.read))
    np.testing.assert_array_equal(read(path), found.read(path))


@pytest.mark.slow
def test_a_dataset_is_prepared_on_its_first_use(tmp_path, capfd):
    """By TFDS's own code from archives as ImageNet has them, of two images to train on and one to
    test.
    """
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)

    def archive(file, members):
        with tarfile.open(file, "w") as tar:
            for name, content in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))

    inner = tmp_path / "n01443537.tar"
    archive(inner, {f"n01443537_{i}.JPEG": tfds_trees.jpeg(100 * i).read() for i in (1, 2)})
    archive(manual / "ILSVRC2012_img_train.tar", {inner.name: inner.read_bytes()})
    archive(
        manual / "ILSVRC2012_img_val.tar",
        {"ILSVRC2012_val_00000001.JPEG": tfds_trees.jpeg(50).read()},
    )
    found = read_tfds("imagenet", str(tmp_path))
    assert "downloads and prepares imagenet2012" in capfd.readouterr().out
    assert [found.classnames[e.label] for e in found.train] == ["goldfish", "goldfish"]
    assert sorted(found.read(e.path).getpixel((0, 0))[0] for e in found.train) == [100, 200]
    assert [found.classnames[e.label] for e in found.test] == [
        "sea snake"
    ]  # as the validation labels have it
    assert read_tfds("imagenet", str(tmp_path))[1:] == found[1:]


def test_a_dataset_that_cannot_be_prepared_is_one_sentence(tmp_path):
    """ImageNet has to be put there by hand; TFDS says so, in another process."""
    with pytest.raises(UserError, match=rf"imagenet2012 in {tmp_path}"):
        read_tfds("imagenet", str(tmp_path))
    with pytest.raises(UserError, match="fgvc_aircraft"):  # which TFDS does not have
        read_tfds("fgvc_aircraft", str(tmp_path))
