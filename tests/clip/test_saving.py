"""A saved model folder is complete on a disk and in a bucket, from which it is copied once."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from transformers import CLIPConfig

from dpt_jax.clip.config import Preprocessing, read_transformers
from dpt_jax.clip.pretrained import load_clip, save_clip
from dpt_jax.io import as_path
from tests.helpers.commands import refused
from tests.helpers.object_store import put_folder
from tests.helpers.weight_files import assert_same

WEIGHTS = "model.safetensors"
OWN = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bilinear", "squash")


@pytest.fixture(scope="module")
def tiny():
    clip = load_clip("tiny-clip")
    return clip._replace(config=dataclasses.replace(clip.config, preprocessing=OWN))


def test_a_model_saved_into_a_folder_of_open_clip_is_the_one_that_is_read(tiny, tmp_path):
    older = jax.tree.map(lambda x: 2 * x, tiny.params)
    save_clip(tiny._replace(params=older), as_path(tmp_path / "older"), "open_clip")
    save_clip(tiny, as_path(tmp_path / "newer"))
    shutil.copytree(tmp_path / "newer", tmp_path / "older", dirs_exist_ok=True)
    assert load_clip(str(tmp_path / "older")).digest == tiny.digest


@pytest.mark.parametrize("layout", ["transformers", "open_clip", "orbax"])
def test_folder_that_looks_like_a_pattern(tiny, tmp_path, layout):
    target = tmp_path / "a[b]*?" / "clip"
    save_clip(tiny, as_path(target), layout)
    again = load_clip(str(target))
    assert again.config == tiny.config
    assert again.digest == tiny.digest
    assert (again.tokenizer.start, again.tokenizer.end) == (4512, 4513)
    jax.tree.map(np.testing.assert_array_equal, again.params, tiny.params)
    refused("clip", save_clip, tiny, as_path(target), layout)


def test_missing_keys_have_the_defaults_of_transformers(tmp_path):
    file = epath.Path(tmp_path) / "config.json"
    file.write_text('{"model_type": "clip"}')
    ours = read_transformers(file)[0]
    file.write_text(json.dumps(CLIPConfig().to_dict()))
    assert read_transformers(file)[0] == ours


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dpt_jax" / "buckets"


def test_what_is_needed_is_copied(bucket, tiny_clip_dir, tiny_clip, tmp_path, cache):
    """Other files of the folder stay where they are."""
    folder = shutil.copytree(tiny_clip_dir, tmp_path / "clip")
    (folder / "tf_model.h5").write_bytes(b"large")
    put_folder(folder, f"{bucket}/clip")
    assert_same(load_clip(f"{bucket}/clip"), tiny_clip)
    assert_same(load_clip(f"{bucket}/clip/{WEIGHTS}"), tiny_clip)
    copied = {file.name for file in cache.rglob("*") if file.is_file()}
    assert WEIGHTS in copied
    assert "tf_model.h5" not in copied
    (as_path(bucket) / "clip" / WEIGHTS).write_bytes(b"damaged")
    refused(rf"{cache}.*{WEIGHTS}", load_clip, f"{bucket}/clip")


@pytest.mark.parametrize("layout", ["transformers", "orbax"])
def test_a_folder_is_written_to_a_bucket_and_read(bucket, tiny_clip, cache, layout):
    save_clip(tiny_clip, as_path(f"{bucket}/{layout}"), layout)
    assert_same(load_clip(f"{bucket}/{layout}"), tiny_clip)


def test_an_orbax_folder_that_is_not_whole(tiny, tmp_path, monkeypatch):
    """With a relative path, which Orbax itself does not accept."""
    monkeypatch.chdir(tmp_path)
    save_clip(tiny, as_path("clip"), "orbax")
    assert load_clip("clip").digest == tiny.digest
    config = json.loads((tmp_path / "clip" / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] += 1
    (tmp_path / "clip" / "config.json").write_text(json.dumps(config))
    refused(r"clip/params.*text/", load_clip, "clip")
    shutil.rmtree(tmp_path / "clip" / "params" / "d")
    refused("clip/params", load_clip, "clip")


@pytest.mark.parametrize("folder", ["empty", "none"])
def test_no_model_there(bucket, folder, cache):
    (as_path(bucket) / "empty" / "notes.txt").write_text("nothing")
    refused(f"{bucket}/{folder}", load_clip, f"{bucket}/{folder}")
