"""In which order and shapes images come: the same for the same seed, from any step."""

import itertools
import multiprocessing
import signal

import numpy as np
import pytest
from PIL import Image

from dpt_jax.clip.config import CLIP_PREPROCESSING
from dpt_jax.data import loader, records
from dpt_jax.data.folder import read_folder
from dpt_jax.data.records import Example, Files
from dpt_jax.errors import UserError
from tests.helpers.commands import refused, start
from tests.helpers.configs import IMAGES
from tests.helpers.golden import DATA


def batches_of(start=0, transfer=None, **settings):
    settings = {"read": Files(IMAGES), "examples": read_folder(IMAGES).train} | settings
    settings = {"size": 32, "batch_size": 5, "epochs": 3} | settings
    return loader.train_batches(loader.Loading(**settings), start, transfer)


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        for name in ("image", "label", "index"):
            np.testing.assert_array_equal(a[name], b[name])


def test_batches_depend_on_the_seed_and_not_on_cores_cache_or_transfer(monkeypatch):
    """Without a cache, with room for some images, and by the thread that copies to devices."""
    expected, other = list(batches_of()), list(batches_of(seed=1))
    assert len(expected) == 3 * loader.steps_per_epoch(12, 5) == 6
    of_images = {(x["image"].dtype.name, x["image"].shape) for x in expected}
    assert of_images == {("uint8", (5, 32, 32, 3))}
    assert any((a["image"] != b["image"]).any() for a, b in zip(expected, other, strict=True))
    for limit, transfer in ((0, None), (4 * 32 * 32 * 5, None), (10**9, lambda batch: batch)):
        monkeypatch.setattr(records, "cache", records.ImageCache(limit))
        assert_same(batches_of(transfer=transfer), expected)
    monkeypatch.setattr(loader, "LEAST_THREADS", 7)
    monkeypatch.setattr(loader, "MOST_THREADS", 7)
    assert_same(batches_of(), expected)


def test_a_shift_moves_images_and_repeats_their_edge():
    """By up to so many pixels, without crop or mirror, differently in each epoch."""
    plain = {batch["index"][0]: batch["image"][0] for batch in images_of(epochs=1)}
    moves = set()
    for batch in images_of(epochs=8, shift=2):
        original, found = plain[batch["index"][0]], batch["image"][0]
        padded = np.pad(original, ((2, 2), (2, 2), (0, 0)), mode="edge")
        own = {
            (x, y)
            for x, y in itertools.product(range(5), repeat=2)
            if np.array_equal(found, padded[y : y + 32, x : x + 32])
        }
        assert own
        moves |= own
    assert {x for x, _ in moves} == {y for _, y in moves} == set(range(5))


def images_of(**settings):
    """One image per batch, unchanged but for these settings."""
    return batches_of(batch_size=1, augment=False, **settings)


@pytest.mark.parametrize(("start", "workers"), [(1, 0), (3, 2)])
def test_loader_resumes_from_any_step(start, workers):
    """Also within an epoch, and with a different number of workers."""
    rest = list(batches_of(workers=workers, start=start))
    assert len(rest) == 6 - start
    assert_same(rest, list(batches_of())[start:])


@pytest.mark.parametrize(("batch_size", "hosts"), [(5, 5), (4, 2), (32, 5)])
def test_hosts_share_the_rows_of_every_batch(batch_size, hosts):
    """Together they have what one host has, augmented alike, also if some have more rows."""
    alone = list(batches_of(batch_size=batch_size))
    shares = [list(batches_of(batch_size=batch_size, host=h, hosts=hosts)) for h in range(hosts)]
    assert {len(share) for share in shares} == {len(alone)}
    for step, whole in enumerate(alone):
        for host, share in enumerate(shares):
            for name, rows in share[step].items():
                np.testing.assert_array_equal(rows, whole[name][host::hosts])


def test_test_batches_keep_the_order_and_the_last_images():
    dataset = read_folder(IMAGES)
    loading = loader.Loading(read=dataset.read, examples=dataset.test, size=32, batch_size=7)
    batches = list(loader.test_batches(loading))
    assert [len(batch["label"]) for batch in batches] == [7, 7, 4]
    assert np.concatenate([b["label"] for b in batches]).tolist() == [e.label for e in dataset.test]


class Numbered:
    def __call__(self, path):
        return Image.new("RGB", (8, 8), (int(path), 0, 0))


def numbered(images, start=0, **settings):
    """Batches of so many images that no file has."""
    examples = [Example(str(i), 0) for i in range(images)]
    return batches_of(start, read=Numbered(), examples=examples, size=8, seed=3, **settings)


@pytest.mark.parametrize(("images", "batch_size"), [(23, 5), (5, 8), (8, 4)])
def test_no_epoch_repeats_another_and_the_remainder_changes(images, batch_size):
    """With some versions of Grain a sliced data set repeated the first epoch."""

    def orders(start=0):
        batches = numbered(images, start, batch_size=batch_size, epochs=12)
        return [batch["index"].tolist() for batch in batches]

    an_epoch = loader.steps_per_epoch(images, batch_size)
    steps = orders()
    epochs = [[*itertools.chain(*steps[i : i + an_epoch])] for i in range(0, len(steps), an_epoch)]
    assert len(epochs) == len({tuple(epoch) for epoch in epochs}) == 12
    assert all(len(set(epoch)) == len(epoch) for epoch in epochs)
    assert set(itertools.chain(*epochs)) == set(range(images))
    for first in (1, an_epoch, an_epoch + 1, 12 * an_epoch):
        assert orders(first) == steps[first:]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_training_image_that_cannot_be_read_is_one_sentence(tmp_path, workers):
    (tmp_path / "none.png").write_bytes(b"")
    settings = {"read": Files(tmp_path), "examples": [Example("none.png", 0)], "batch_size": 1}
    with pytest.raises(UserError, match=r"none\.png .*on_error=skip\.$") as error:
        next(batches_of(workers=workers, **settings))
    assert "\n" not in str(error.value)
    assert next(batches_of(skip_unreadable=True, **settings))["weight"].tolist() == [0]


def long_training():
    return numbered(1, batch_size=1, epochs=10**6, workers=1)


def test_a_killed_loader_process_is_one_sentence():
    batches = long_training()
    next(batches)
    (worker,) = multiprocessing.active_children()
    worker.kill()
    refused("loader process", list, batches)


@pytest.mark.process
@pytest.mark.slow
def test_loader_processes_end_with_a_killed_run():
    code = "import os, signal; from tests.data.test_loader import long_training; "
    code += "batches = long_training(); next(batches); os.kill(os.getpid(), signal.SIGKILL)"
    done = start("-c", code)
    done.communicate(timeout=60)  # the output ends when the last process closes it
    assert done.returncode == -signal.SIGKILL


def test_pixels_are_torchvisions(monkeypatch):
    """The transforms of CoOp's pipeline for the same boxes, to the byte."""
    golden = np.load(DATA / "torchvision_pixels.npz")
    for name in sorted({key.partition("/")[0] for key in golden.files if "/" in key}):
        image = Image.fromarray(golden[f"{name}/image"])
        found = CLIP_PREPROCESSING.transform(image, 32)
        np.testing.assert_array_equal(found, golden[f"{name}/test"])
        for box, crops in zip(golden[f"{name}/boxes"], golden[f"{name}/train"], strict=True):
            monkeypatch.setattr(loader, "random_box", lambda *_, box=box: tuple(box.tolist()))
            drawn = {}
            for seed in range(20):
                found = loader.train_transform(image, 32, np.random.default_rng(seed))
                drawn[found.tobytes()] = found
            assert set(drawn) == {crop.tobytes() for crop in crops}
