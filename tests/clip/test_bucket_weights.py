"""A CLIP in a bucket, in each format: it is copied to this disk once, and read there."""

import shutil

import flax.serialization
import pytest
import torch
from safetensors.numpy import load_file

from dpt_jax.clip.pretrained import load_clip, save_orbax
from dpt_jax.errors import UserError
from dpt_jax.io import as_path
from tests.helpers.object_store import put_folder
from tests.helpers.weight_files import as_flax, assert_same, torch_state, write_shards

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def model(tiny_clip_dir):
    """A model folder, and what is read from it on this disk."""
    return tiny_clip_dir, load_clip(str(tiny_clip_dir))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Where copies are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dpt_jax" / "buckets"


def as_msgpack(folder, tensors):
    content = flax.serialization.msgpack_serialize(as_flax(tensors))
    (folder / "flax_model.msgpack").write_bytes(content)


def as_pytorch(folder, tensors):
    torch.save(torch_state(tensors), folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("write", "file"),
    [
        (None, WEIGHTS),
        (as_msgpack, "flax_model.msgpack"),
        (as_pytorch, "pytorch_model.bin"),
        (write_shards, "model.safetensors.index.json"),
    ],
)
def test_every_format_by_its_folder_and_by_its_file(bucket, model, tmp_path, write, file):
    source, expected = model
    folder = tmp_path / "clip"
    shutil.copytree(source, folder)
    if write is not None:
        write(folder, load_file(source / WEIGHTS))
        (folder / WEIGHTS).unlink()
    put_folder(folder, f"{bucket}/clip")
    assert_same(load_clip(f"{bucket}/clip"), expected)
    assert_same(load_clip(f"{bucket}/clip/{file}"), expected)


def test_what_is_needed_is_copied_once(bucket, model, tmp_path, store, cache, capsys):
    """And again when it has changed; other files of the folder stay where they are."""
    source, _ = model
    shutil.copytree(source, tmp_path / "clip")
    (tmp_path / "clip" / "tf_model.h5").write_bytes(b"large")
    (tmp_path / "clip" / "samples").mkdir()
    (tmp_path / "clip" / "samples" / "x.png").write_bytes(b"large")
    put_folder(tmp_path / "clip", f"{bucket}/clip")
    load_clip(f"{bucket}/clip")
    assert f"from {bucket}/clip to {cache}" in capsys.readouterr().out
    copied = {file.name for file in cache.rglob("*") if file.is_file()}
    assert WEIGHTS in copied
    assert copied <= {file.name for file in source.iterdir()}
    before = len(store.requests())
    load_clip(f"{bucket}/clip")
    assert all("/o?" in path for _, path in store.requests()[before:])  # listings alone
    # What somebody has tidied up there would be taken for what the model does without.
    next(cache.rglob("preprocessor_config.json")).unlink()
    load_clip(f"{bucket}/clip")
    assert {file.name for file in cache.rglob("*") if file.is_file()} == copied
    (as_path(bucket) / "clip" / WEIGHTS).write_bytes(b"damaged")
    with pytest.raises(UserError, match=rf"{cache}.*{WEIGHTS} cannot be read"):
        load_clip(f"{bucket}/clip")


def test_an_orbax_folder_is_written_and_read(bucket, model):
    _, expected = model
    save_orbax(expected, f"{bucket}/orbax")
    assert_same(load_clip(f"{bucket}/orbax"), expected)
    with pytest.raises(UserError, match="already exists"):
        save_orbax(expected, f"{bucket}/orbax")


def test_no_model_there(bucket, model, tmp_path):
    (as_path(bucket) / "empty" / "notes.txt").write_text("nothing")
    with pytest.raises(UserError, match=rf"{bucket}/empty has no CLIP weights"):
        load_clip(f"{bucket}/empty")
    with pytest.raises(UserError, match=rf"clip.weights: {bucket}/none"):
        load_clip(f"{bucket}/none")
