"""A CLIP in a bucket: it is copied to this disk once, and read there."""

import shutil

import pytest

from dpt_jax.clip.pretrained import load_clip, save_clip
from dpt_jax.errors import UserError
from dpt_jax.io import as_path
from tests.helpers.object_store import put_folder
from tests.helpers.weight_files import assert_same

WEIGHTS = "model.safetensors"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Where copies are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dpt_jax" / "buckets"


def test_what_is_needed_is_copied(bucket, source, expected, tmp_path, cache):
    """Other files of the folder stay where they are."""
    folder = shutil.copytree(source, tmp_path / "clip")
    (folder / "tf_model.h5").write_bytes(b"large")
    put_folder(folder, f"{bucket}/clip")
    assert_same(load_clip(f"{bucket}/clip"), expected)
    assert_same(load_clip(f"{bucket}/clip/{WEIGHTS}"), expected)
    copied = {file.name for file in cache.rglob("*") if file.is_file()}
    assert WEIGHTS in copied
    assert "tf_model.h5" not in copied
    (as_path(bucket) / "clip" / WEIGHTS).write_bytes(b"damaged")
    with pytest.raises(UserError, match=rf"{cache}.*{WEIGHTS}"):
        load_clip(f"{bucket}/clip")


def test_a_folder_is_written_and_read(bucket, expected):
    save_clip(expected, as_path(f"{bucket}/saved"))
    assert_same(load_clip(f"{bucket}/saved"), expected)


@pytest.mark.parametrize("folder", ["empty", "none"])
def test_no_model_there(bucket, folder):
    (as_path(bucket) / "empty" / "notes.txt").write_text("nothing")
    with pytest.raises(UserError, match=f"{bucket}/{folder}"):
        load_clip(f"{bucket}/{folder}")
