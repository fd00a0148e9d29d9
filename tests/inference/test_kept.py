"""Test images that one evaluation keeps for the next: fewer reads, and the same bits."""

import concurrent.futures
import importlib
import shutil

import numpy as np
import pytest
from PIL import Image

from dpt_jax.data import records
from dpt_jax.evaluation import evaluate as evaluation
from dpt_jax.evaluation import kept, kept_on_disk
from dpt_jax.io import as_path
from dpt_jax.training import initial_prompts as adoption
from dpt_jax.training import setup as experiments
from tests.helpers.configs import small_config
from tests.helpers.golden import SMALL
from tests.helpers.object_store import put_folder

pytestmark = pytest.mark.compiles

IMAGES = 18  # of the test split


@pytest.fixture
def reads(monkeypatch):
    """The files that were read, in any order."""
    files = []
    read = records.read_image
    monkeypatch.setattr(records, "read_image", lambda *file: files.append(file) or read(*file))
    return files


@pytest.fixture
def evaluate(clip, clip_dir, tmp_path):
    """(method, what is kept here, MB on the disk) -> its predictions on the small images."""
    shutil.copytree(SMALL / "images", tmp_path / "images")

    def predict(method, images=None, cache_mb=0, root=tmp_path / "images"):
        config = small_config(
            clip_dir, importlib.import_module(f"configs.{method}"), dataset__root=str(root)
        )
        part = config.text_prompt if method == "coop" else config.visual_prompt
        part.length, config.dataset.shots, config.eval.batch_size = 2, -1, 5
        config.eval.cache_mb = cache_mb
        prepared = experiments.prepare(config, clip)._replace(kept=images)
        return evaluation.predict(prepared, adoption.initial_prompts(prepared))

    return predict


def assert_same(found, expected):
    for own, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(own, other)


def test_images_are_read_once_and_the_bits_are_the_same(evaluate, reads, tmp_path):
    images = kept.KeptImages()
    for method in ("coop", "vpt", "coop"):
        assert_same(evaluate(method, images), evaluate(method))
    assert len(reads) == (1 + 3) * IMAGES  # one time in all, and each time without
    # A file that was changed is another image, though its name is the same.
    changed = next((tmp_path / "images" / "test").rglob("*.png"))
    Image.new("RGB", (9, 9), "red").save(changed)
    before = evaluate("coop")
    reads.clear()
    assert_same(evaluate("coop", images), before)
    assert len(reads) == IMAGES


def test_what_is_too_large_is_read_again_where_pixels_are_needed(evaluate, reads):
    """Features are kept whatever the limit, and CoOp needs nothing else."""
    images = kept.KeptImages(limit=0)
    first = [evaluate(method, images) for method in ("coop", "vpt")]
    assert len(reads) == 2 * IMAGES
    reads.clear()
    assert_same(evaluate("coop", images), first[0])
    assert not reads
    assert_same(evaluate("vpt", images), first[1])
    assert len(reads) == IMAGES


def test_the_pixels_kept_first_are_the_first_to_go():
    def batches(size):
        return [kept.KeptBatch({}, np.zeros(size, np.uint8), None)]

    images = kept.KeptImages(limit=10)
    for name, size in (("first", 4), ("second", 6), ("third", 3)):
        images.keep(name, batches(size))
    sizes = {name: images.get(name)[0].images for name in ("first", "second", "third")}
    assert sizes["first"] is None
    assert [len(sizes[name]) for name in ("second", "third")] == [6, 3]


def test_an_image_in_a_bucket_that_was_written_again_is_another(
    evaluate, cache, bucket, store, tmp_path
):
    """Its listing tells, which a run makes anyway: no request more, kept here or on the disk."""
    root = f"{bucket}/images"
    put_folder(SMALL / "images", root)
    images = kept.KeptImages()

    def asked(**where):
        before = len(store.requests())
        found = evaluate("coop", root=root, **where)
        return len(store.requests()) - before, found

    ways = ({"images": images}, {"cache_mb": 1})
    for _ in range(2):
        expected = evaluate("coop")
        for way in ways:
            assert asked(**way)[0] == 1 + IMAGES
            requests, found = asked(**way)
            assert requests == 1
            assert_same(found, expected)
        changed = next((tmp_path / "images" / "test").rglob("*.png"))
        Image.new("RGB", (9, 9), "red").save(changed)
        again = as_path(root) / changed.relative_to(tmp_path / "images").as_posix()
        again.write_bytes(changed.read_bytes())


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """The folder of features on the disk, which is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dpt_jax" / "features"


def test_another_process_sees_no_image_again_but_where_its_method_prompts_the_tower(
    evaluate, reads, cache
):
    """An evaluation that keeps nothing in its process is what a new process would do."""
    expected = {method: evaluate(method) for method in ("coop", "vpt")}
    reads.clear()
    assert_same(evaluate("vpt", cache_mb=1), expected["vpt"])
    assert len(reads) == IMAGES
    reads.clear()
    assert_same(evaluate("coop", cache_mb=1), expected["coop"])
    images = kept.KeptImages()
    for _ in range(2):
        assert_same(evaluate("coop", images, cache_mb=1), expected["coop"])
    assert not reads
    assert_same(evaluate("vpt", cache_mb=1), expected["vpt"])
    assert len(reads) == IMAGES
    assert len(list(cache.glob("*.npz"))) == 1


def test_damaged_and_foreign_files_are_made_again(evaluate, reads, cache, tmp_path):
    expected = evaluate("coop", cache_mb=1)
    (file,) = cache.glob("*.npz")
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[-2000] ^= 1
    # Features of the same images as they were before, below the name of those as they are now.
    changed = next((tmp_path / "images" / "test").rglob("*.png"))
    changed.touch()
    assert_same(evaluate("coop", cache_mb=1), expected)
    (new,) = set(cache.glob("*.npz")) - {file}
    for content in (b"", whole[:100], bytes(flipped), whole):
        new.write_bytes(content)
        reads.clear()
        assert_same(evaluate("coop", cache_mb=1), expected)
        assert len(reads) == IMAGES
        reads.clear()
        assert_same(evaluate("coop", cache_mb=1), expected)
        assert not reads


def batches(value, rows=8):
    known = {name: np.full(rows, value) for name in ("label", "index", "weight")}
    nothing = {name: column[:0] for name, column in known.items()}
    return [
        kept.KeptBatch(known, None, np.full((1, rows, 4), value, np.float32)),
        kept.KeptBatch(nothing, None, np.zeros((1, rows, 4), np.float32)),
    ]


def test_what_was_not_used_for_longest_goes_first(tmp_path):
    disk = kept_on_disk.KeptOnDisk(5000, tmp_path)
    for number, key in enumerate("abc"):
        disk.keep(key, batches(number))
        if key == "b":
            assert disk.get("a") is not None  # from then on b is the oldest
    assert [key for key in "abc" if disk.get(key)] == ["a", "c"]
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 5000
    for own, other in zip(disk.get("c"), batches(2), strict=True):
        np.testing.assert_array_equal(own.features, other.features)
        for name, column in other.known.items():
            np.testing.assert_array_equal(own.known[name], column)
    disk.keep("large", batches(0, rows=1000))
    assert [key for key in ("a", "c", "large") if disk.get(key)] == ["a", "c"]


def test_several_processes_at_once(tmp_path, capsys):
    """Threads with files and locks of their own, which write the same keys."""

    def use(number):
        disk = kept_on_disk.KeptOnDisk(5000, tmp_path)
        for key in range(20):
            value = (number + key) % 4
            disk.keep(str(value), batches(value))
            if (found := disk.get(str(value))) is not None:
                assert (found[0].features == value).all()

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        list(threads.map(use, range(4)))
    assert not capsys.readouterr().out
    assert all(file.suffix == ".npz" or file.name == ".lock" for file in tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_keeps_nothing(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    kept_on_disk.KeptOnDisk(5000, tmp_path / "file").keep("key", batches(1))
    assert "features of test images are not kept in" in capsys.readouterr().out
