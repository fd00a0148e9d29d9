"""What is drawn, how images become pixels, and in which order they come."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from configs import dpt
from dpt_jax.data import loader, transforms
from dpt_jax.data.dataset import load_dataset
from dpt_jax.data.folder import read_folder
from dpt_jax.data.records import Example, Files, read_image
from dpt_jax.data.sampling import few_shot, half_of_classes
from dpt_jax.data.transforms import AREA, RATIO, random_box, train_transform
from dpt_jax.errors import UserError
from tests.helpers.golden import SMALL

IMAGES = SMALL / "images"


def examples_of(labels):
    return [Example(f"{i}.png", label) for i, label in enumerate(labels)]


label_lists = st.lists(st.integers(0, 5), min_size=1, max_size=60)


@given(label_lists, label_lists, st.sampled_from([1, 2, 4, 8, 16]), st.integers(1, 3))
def test_few_shot_sample_is_that_of_the_published_rule(train, val, shots, seed):
    """random.seed(k); per label in order of appearance, random.sample; train first, then val."""
    random.seed(seed)
    expected = []
    for labels, count in ((train, shots), (val, min(shots, 4))):
        items = {}
        for example in examples_of(labels):
            items.setdefault(example.label, []).append(example)
        expected.append([])
        for own in items.values():
            expected[-1] += random.sample(own, count) if len(own) >= count else own
    assert few_shot(examples_of(train), examples_of(val), shots, seed) == tuple(expected)


def test_all_shots():
    train = examples_of([1, 0, 1])
    assert few_shot(train, train[:1], -1, 1) == (train, train[:1])


@given(st.integers(2, 300))
def test_halves_of_the_classes(classes):
    base, new = half_of_classes(classes, "base"), half_of_classes(classes, "new")
    assert [*base, *new] == list(range(classes))
    assert len(base) - len(new) in (0, 1)


def config_of(**settings):
    config = dpt.get_config("folder").dataset
    config.root = str(IMAGES)
    config.update(settings)
    return config


def test_base_and_new_share_one_sample():
    whole = load_dataset(config_of(shots=1), seed=2)
    base, new = (load_dataset(config_of(shots=1, classes=half), seed=2) for half in ("base", "new"))
    assert base.classnames + new.classnames == whole.classnames == tuple(sorted(whole.classnames))
    for part in ("train", "test"):
        rejoined = getattr(base, part) + [Example(e.path, e.label + 3) for e in getattr(new, part)]
        assert rejoined == getattr(whole, part)


def save(path, size=(8, 8), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 1).save(path)


def test_folder_dataset(tmp_path):
    """Sorted class folders, any image extension, hidden folders and other files left alone."""
    for name in (
        "test/b_c/2.JPG",
        "test/b_c/1.png",
        "test/a/1.webp",
        "train/a/x.png",
        ".cache/a/x.png",
    ):
        save(tmp_path / name)
    (tmp_path / "test" / "a" / "notes.txt").write_text("not an image")
    (tmp_path / "test" / ".DS_Store").mkdir()
    found = read_folder(tmp_path)
    assert found.classnames == ("a", "b c")
    assert found.test == [
        Example("test/a/1.webp", 0),
        Example("test/b_c/1.png", 1),
        Example("test/b_c/2.JPG", 1),
    ]
    assert found.train == [Example("train/a/x.png", 0)]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"root": "/nowhere"}, "/nowhere is not a folder"),
        ({"root": ""}, r"--config\.dataset\.root=DIR"),
        ({"source": "coop"}, "not 'folder'"),
    ],
)
def test_wrong_dataset_settings_are_named(settings, says):
    with pytest.raises(UserError, match=says):
        load_dataset(config_of(**settings), seed=1)


def test_folders_that_are_not_a_dataset_are_named(tmp_path):
    with pytest.raises(UserError, match="no test/ folder"):
        read_folder(tmp_path)
    (tmp_path / "test").mkdir()
    with pytest.raises(UserError, match="no class folders"):
        read_folder(tmp_path)
    (tmp_path / "test" / "empty").mkdir()
    with pytest.raises(UserError, match=r"test/empty holds no images"):
        read_folder(tmp_path)


def test_broken_image_is_named(tmp_path):
    file = tmp_path / "broken.png"
    file.write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    with pytest.raises(UserError, match=r"broken\.png cannot be read"):
        read_image(file)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    file = tmp_path / ("image.tiff" if mode == "CMYK" else "image.png")
    save(file, mode=mode)
    assert read_image(file).mode == "RGB"


@settings(deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([16, 32]))
def test_test_transform_resizes_the_shorter_side_and_crops_the_centre(width, height, size):
    image = Image.new("RGB", (width, height), (10, 20, 30))
    pixels = transforms.test_transform(image, size)
    assert pixels.shape == (size, size, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.broadcast_to([10, 20, 30], pixels.shape))


def test_test_transform_of_a_square_is_one_bicubic_resize():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 50, 3), np.uint8))
    np.testing.assert_array_equal(
        transforms.test_transform(image, 32), np.asarray(image.resize((32, 32), Image.BICUBIC))
    )
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 53, 3), np.uint8))
    # 53 - 32 = 21 columns too many, of which round(10.5) = 10 (half to even) are left of the crop.
    np.testing.assert_array_equal(transforms.test_transform(wide, 32), np.asarray(wide)[:, 10:42])


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 2**32 - 1))
def test_random_box_lies_inside_and_keeps_to_the_published_ranges(width, height, seed):
    left, top, right, bottom = random_box(width, height, np.random.default_rng(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    if min(width, height) > 60 and RATIO[0] <= width / height <= RATIO[1]:
        area, ratio = (
            (right - left) * (bottom - top) / (width * height),
            (right - left) / (bottom - top),
        )
        assert AREA[0] * 0.9 <= area <= AREA[1]  # sides are rounded to pixels
        assert RATIO[0] * 0.93 <= ratio <= RATIO[1] * 1.07


def test_train_transform_mirrors_half_the_time():
    ramp = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8)[None, :, None] * 3, (64, 1, 3)))
    drawn = [train_transform(ramp, 16, np.random.default_rng(seed)) for seed in range(200)]
    mirrored = [bool(x[0, 0, 0] > x[0, -1, 0]) for x in drawn]
    assert 70 < sum(mirrored) < 130
    assert len({x.tobytes() for x in drawn}) > 150


def batches_of(seed=0, augment=True, workers=0, batch_size=5, epochs=3, **place):
    train = load_dataset(config_of(shots=-1), seed=1).train
    start = place.pop("start", 0)
    loading = loader.TrainLoading(
        read=Files(IMAGES),
        examples=train,
        size=32,
        batch_size=batch_size,
        epochs=epochs,
        seed=seed,
        augment=augment,
        workers=workers,
        **place,
    )
    return loader.train_batches(loading, start)


def test_batches_depend_on_the_seed_alone():
    one, same, other = list(batches_of()), list(batches_of()), list(batches_of(seed=1))
    assert len(one) == 3 * loader.steps_per_epoch(12, 5) == 6
    for a, b in zip(one, same, strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])
        np.testing.assert_array_equal(a["label"], b["label"])
    assert any((a["image"] != b["image"]).any() for a, b in zip(one, other, strict=True))
    assert all(
        batch["image"].dtype == np.uint8 and batch["image"].shape == (5, 32, 32, 3) for batch in one
    )


def test_every_epoch_is_shuffled_and_augmented_anew():
    batches = list(batches_of(batch_size=12))
    orders = [batch["label"].tolist() for batch in batches]
    assert orders[0] != orders[1]
    assert all(sorted(order) == sorted(orders[0]) for order in orders)
    assert {x.tobytes() for x in batches[0]["image"]}.isdisjoint(
        {x.tobytes() for x in batches[1]["image"]}
    )


def test_fewer_images_than_a_batch_are_one_smaller_batch():
    assert [len(batch["label"]) for batch in batches_of(batch_size=32, epochs=2)] == [12, 12]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [1, 3])
def test_loader_goes_on_from_any_step(start, workers):
    """In the middle of an epoch too, and with another number of workers than before."""
    rest, whole = list(batches_of(workers=workers, start=start)), list(batches_of())
    assert len(rest) == 6 - start
    for a, b in zip(rest, whole[start:], strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])
        np.testing.assert_array_equal(a["label"], b["label"])


@pytest.mark.parametrize(("batch_size", "hosts"), [(5, 5), (4, 2), (32, 5)])
def test_hosts_share_the_rows_of_every_batch(batch_size, hosts):
    """Together they have what one host has, augmented alike, whether or not the rows can be shared equally."""
    alone = list(batches_of(batch_size=batch_size))
    shares = [list(batches_of(batch_size=batch_size, host=h, hosts=hosts)) for h in range(hosts)]
    assert {len(share) for share in shares} == {len(alone)}
    for step, whole in enumerate(alone):
        for host, share in enumerate(shares):
            for name, rows in share[step].items():
                np.testing.assert_array_equal(rows, whole[name][host::hosts])


def test_hosts_that_cannot_share_a_batch_are_told_so():
    with pytest.raises(
        UserError, match=r"train\.batch_size is 5: it must be a multiple of the 2 hosts"
    ):
        batches_of(batch_size=5, hosts=2)
    with pytest.raises(UserError, match="12 training images cannot be shared by 16 hosts"):
        batches_of(batch_size=32, hosts=16)


def test_test_batches_keep_the_order_and_the_last_images():
    dataset = load_dataset(config_of(), seed=1)
    loading = loader.Loading(read=dataset.read, examples=dataset.test, size=32, batch_size=7)
    batches = list(loader.test_batches(loading))
    assert [len(batch["label"]) for batch in batches] == [7, 7, 4]
    assert np.concatenate([b["label"] for b in batches]).tolist() == [e.label for e in dataset.test]


@given(st.integers(1, 9), st.sampled_from([1, 2, 4]))
def test_shard_pads_with_rows_of_no_weight(own, devices):
    batch = {
        "image": np.arange(own * 12, dtype=np.uint8).reshape(own, 2, 2, 3),
        "label": np.arange(own, dtype=np.int32),
        "weight": np.ones(own, np.float32),
        "index": np.arange(own, dtype=np.int32),
    }
    split = loader.shard(batch, 9, devices)
    assert split["image"].shape[:2] == (devices, -(-9 // devices))
    flat = {name: x.reshape(-1, *x.shape[2:]) for name, x in split.items()}
    assert flat["weight"].tolist() == [1.0] * own + [0.0] * (len(flat["weight"]) - own)
    np.testing.assert_array_equal(flat["image"][:own], batch["image"])
    np.testing.assert_array_equal(flat["label"][:own], batch["label"])


def test_the_bundled_images_are_a_few_shot_task():
    dataset = load_dataset(dpt.get_config().dataset, seed=1)
    assert len(dataset.classnames) >= 12
    assert len(dataset.train) == 8 * len(dataset.classnames)
    root = dataset.read.root
    drawings = [(root / e.path).read_bytes() for e in read_folder(root).train + dataset.test]
    assert len(set(drawings)) == len(drawings)  # nothing is trained on and tested on
    assert (root / "NOTICE.md").exists()
