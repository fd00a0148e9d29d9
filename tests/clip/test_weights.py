"""Every format of weights gives the same CLIP, also saved, and from a bucket; others are refused by
name, and none is run.
"""

import dataclasses
import io
import json
import os
import re
import shutil
import time

import flax.traverse_util
import jax
import numpy as np
import pytest
import torch
import transformers
from etils import epath
from huggingface_hub import constants
from safetensors.numpy import load_file, save_file

from dpt_jax.clip.config import OPENAI_MODELS, Preprocessing, read_transformers
from dpt_jax.clip.pretrained import load_clip, locate, recognise, save_clip
from dpt_jax.io import ASSETS, as_path
from tests.clip.test_features import write_tokenizer_json
from tests.helpers import make_clip
from tests.helpers.commands import refused
from tests.helpers.object_store import put_folder

TINY = ASSETS / "tiny-clip"
SAFE = "model.safetensors"
WEIGHTS = (SAFE, "pytorch_model.bin")
FC1 = "vision_model.encoder.layers.1.mlp.fc1.weight"
# Tensors of OpenAI's archives that are not weights.
MARKS = {"input_resolution": 16, "context_length": 77, "vocab_size": 49408}


@pytest.fixture(scope="session")
def tensors(tiny_clip_dir):
    return load_file(tiny_clip_dir / "model.safetensors")


@pytest.fixture(scope="session")
def openai():
    """Weights under OpenAI's names."""
    return make_clip.openai(seed=3, **make_clip.TINY)


@pytest.fixture
def copy(tiny_clip_dir, tmp_path):
    """A copy of the model directory without its weights."""
    ignored = shutil.ignore_patterns("model.safetensors")
    return shutil.copytree(tiny_clip_dir, tmp_path / "copy", ignore=ignored)


def assert_same(clip, expected):
    assert clip.config == expected.config
    jax.tree.map(np.testing.assert_array_equal, clip.params, expected.params)
    assert clip.digest == expected.digest
    own, other = clip.tokenizer, expected.tokenizer
    assert (own.start, own.end) == (other.start, other.end)
    assert own.encode("a sea horse.") == other.encode("a sea horse.")


def torch_state(tensors):
    return {name: torch.tensor(value) for name, value in tensors.items()}


def write_shards(folder, tensors, ending="safetensors"):
    """Write the tensors to two files with an index; return the index."""
    names = sorted(tensors)
    places = {}
    for i, own in enumerate((names[::2], names[1::2])):
        shard = f"model-0000{i + 1}-of-00002.{ending}"
        part = {name: tensors[name] for name in own}
        if ending == "bin":
            torch.save(torch_state(part), folder / shard)
        else:
            save_file(part, folder / shard)
        places |= dict.fromkeys(own, shard)
    stem = "pytorch_model" if ending == "bin" else "model"
    index = folder / f"{stem}.{ending}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


def torch_bytes(thing):
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    return buffer.getvalue()


def test_pytorch_file_with_old_index_buffers(copy, tensors, tiny_clip):
    buffer = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    torch.save(torch_state(tensors) | buffer, copy / "pytorch_model.bin")
    assert_same(load_clip(str(copy)), tiny_clip)


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_sharded_weights(copy, tensors, tiny_clip, ending):
    index = write_shards(copy, tensors, ending)
    for whole in (copy, index):
        assert_same(load_clip(str(whole)), tiny_clip)
    refused("model-00001-of-00002", load_clip, str(copy / f"model-00001-of-00002.{ending}"))


def test_half_precision_file(copy, tensors, tiny_clip):
    save_file({k: v.astype(np.float16) for k, v in tensors.items()}, copy / "model.safetensors")
    clip = load_clip(str(copy))
    assert {x.dtype for x in jax.tree.leaves(clip.params)} == {np.dtype(np.float32)}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        clip.params,
        tiny_clip.params,
    )


def test_bfloat16_keeps_layer_norm_and_temperature_in_float32(tiny_clip_dir, tiny_clip):
    clip = load_clip(str(tiny_clip_dir), jax.numpy.bfloat16)
    assert clip.digest == tiny_clip.digest
    flat = flax.traverse_util.flatten_dict(clip.params, sep="/")
    whole = {name for name in flat if "/ln_" in name or name == "logit_scale"}
    assert {name for name, x in flat.items() if x.dtype == np.float32} == whole


def test_hub_id_from_the_local_cache(tiny_clip_dir, tiny_clip, tmp_path, monkeypatch):
    """As on a machine without network that has downloaded the model before."""
    model = tmp_path / "models--someone--tiny"
    shutil.copytree(tiny_clip_dir, model / "snapshots" / "0123")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("0123")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_same(load_clip("someone/tiny"), tiny_clip)
    refused("someone/else", load_clip, "someone/else")


def test_without_a_network_one_attempt_is_made_and_what_helps_is_named(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits to try again"))
    refused(r"mine/clip.*tiny-clip.*hf download mine/clip", locate, "mine/clip")
    refused("openai/clip-vit-base-patch16", locate, "ViT-B/16")


@pytest.mark.parametrize("name", ["ViT-H-14", "RN50", "hf-hub:laion/some-clip", "no/file.pt", " "])
def test_name_that_is_neither_a_path_nor_an_id(name):
    refused(rf"{name} is not a file", load_clip, name)


def torchscript(tensors, file):
    """Write an archive as OpenAI does: a program whose modules hold the weights."""

    class Part(torch.nn.Module):
        pass

    root = Part()
    for name, value in tensors.items():
        *path, leaf = name.split(".")
        node = root
        for step in path:
            if step not in dict(node.named_children()):
                node.add_module(step, Part())
            node = getattr(node, step)
        node.register_parameter(leaf, torch.nn.Parameter(value, requires_grad=False))
    torch.jit.save(torch.jit.script(root), str(file))


@pytest.mark.parametrize("kind", ["archive", "checkpoint"])
def test_sizes_and_activation_are_not_guessed(openai, tiny_clip_dir, tiny_clip, tmp_path, kind):
    """Archives (read without running them) and checkpoints look alike: they need a config.json."""
    file, state = tmp_path / "tiny.pt", torch_state(openai)
    if kind == "archive":
        torchscript(state | {k: torch.tensor(v) for k, v in MARKS.items()}, file)
    else:
        state = {f"module.{name}": value for name, value in state.items()}
        optimizer = {"state": {}, "param_groups": []}
        whole = {"epoch": 2, "name": "run", "state_dict": state, "optimizer": optimizer}
        torch.save(whole, file)
    refused(file.name, load_clip, str(file))
    shutil.copy(tiny_clip_dir / "config.json", tmp_path)
    assert_same(load_clip(str(file)), tiny_clip)


@pytest.mark.parametrize(
    ("name", "width", "patch", "positions"),
    [
        ("ViT-B/32", 768, 32, 50),
        ("ViT-B/16", 768, 16, 197),
        ("ViT-L/14", 1024, 14, 257),
        ("ViT-L/14@336px", 1024, 14, 577),
    ],
)
def test_openai_archive_is_known_by_its_sizes(name, width, patch, positions):
    """Only shapes matter, so arrays without memory stand for the weights."""
    shapes = {
        "visual.conv1.weight": (width, 3, patch, patch),
        "visual.positional_embedding": (positions, width),
        **dict.fromkeys(MARKS, ()),
    }
    tensors = {n: np.broadcast_to(np.float32(0), shape) for n, shape in shapes.items()}
    config = recognise(tensors, epath.Path("x.pt"))
    assert config == OPENAI_MODELS[name]
    assert config.vision.heads == width // 64


class Trap:
    """Unpickling this runs a program."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_pickled_program_is_not_run(copy, tmp_path):
    target = tmp_path / "trapped"
    (copy / "pytorch_model.bin").write_bytes(torch_bytes({"logit_scale": Trap(str(target))}))
    refused(r"pytorch_model\.bin", load_clip, str(copy))
    assert not target.exists()


def test_shards_that_are_not_what_the_index_says(copy, tensors):
    index = write_shards(copy, tensors)
    whole = index.read_text()
    for places in ({"logit_scale": "../../x.safetensors"}, {"logit_scale": 3}, {}, []):
        index.write_text(json.dumps({"weight_map": places}))
        refused(str(index), load_clip, str(copy))
    index.write_text(whole)
    (copy / "model-00002-of-00002.safetensors").unlink()
    refused("model-00002-of-00002", load_clip, str(copy))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
        (b"", "empty"),
        (b"<!DOCTYPE html><html>", "HTML"),
    ],
)
@pytest.mark.parametrize("name", WEIGHTS)
def test_a_file_of_another_kind_is_named(copy, name, data, says):
    (copy / name).write_bytes(data)
    refused(rf"{copy / name}.*{says}", load_clip, str(copy))


@pytest.mark.parametrize("name", WEIGHTS)
def test_truncated_file_is_named(copy, tiny_clip_dir, tensors, name):
    safe = name == "model.safetensors"
    whole = (tiny_clip_dir / name).read_bytes() if safe else torch_bytes(torch_state(tensors))
    for kept in (100, 200_000):
        (copy / name).write_bytes(whole[:kept])
        refused(str(copy / name), load_clip, str(copy))


CHANGES = {
    "missing": lambda name, value: {},
    "shape": lambda name, value: {name: np.zeros((3, 5), np.float32)},
    "surplus": lambda name, value: {name: value, f"{name}.lora_A": np.zeros(3, np.float32)},
    "integers": lambda name, value: {name: np.zeros(value.shape, np.int64)},
    "nan": lambda name, value: {name: np.full(value.shape, np.nan, np.float32)},
}


def changed(tensors, name, how):
    return {k: v for k, v in tensors.items() if k != name} | CHANGES[how](name, tensors[name])


@pytest.mark.parametrize("how", CHANGES)
def test_a_tensor_that_does_not_fit_is_named(copy, tiny_clip_dir, tensors, openai, tmp_path, how):
    save_file(changed(tensors, FC1, how), copy / "model.safetensors")
    named = "mlp_in/kernel" if how == "nan" else FC1
    refused(rf"{copy / 'model.safetensors'}.*{named}", load_clip, str(copy))

    name = "visual.transformer.resblocks.1.attn.out_proj.weight"
    torch.save(torch_state(changed(openai, name, how)), tmp_path / "tiny.pt")
    shutil.copy(tiny_clip_dir / "config.json", tmp_path)
    named = "out/kernel" if how == "nan" else name
    refused(rf"{tmp_path / 'tiny.pt'}.*{named}", load_clip, str(tmp_path / "tiny.pt"))


def test_folder_without_weights_or_sizes(copy, tiny_clip_dir, tmp_path):
    refused(str(copy), load_clip, str(copy))
    shutil.copy(tiny_clip_dir / "model.safetensors", tmp_path)
    refused(r"config\.json is missing", load_clip, str(tmp_path))


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        (None, "model_type", "siglip"),
        (None, "projection_dim", None),
        ("vision_config", "image_size", [64, 32]),
        ("text_config", "num_attention_heads", "2"),
        ("vision_config", "hidden_act", "relu"),
    ],
)
def test_value_of_a_configuration_that_is_not_supported_is_named(tmp_path, part, key, value):
    """In a folder with all files that transformers' layout has."""
    shutil.copy(TINY / "preprocessor_config.json", tmp_path)
    write_tokenizer_json(tmp_path)
    write_shards(tmp_path, load_file(TINY / "model.safetensors"))
    raw = json.loads((TINY / "config.json").read_text())
    (raw[part] if part else raw)[key] = value
    file = tmp_path / "config.json"
    file.write_text(json.dumps(raw))
    refused(rf"{file}.*{re.escape(repr(value))}", load_clip, str(tmp_path))


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


def test_missing_keys_have_the_defaults_of_transformers(tmp_path):
    file = epath.Path(tmp_path) / "config.json"
    file.write_text('{"model_type": "clip"}')
    ours = read_transformers(file)[0]
    file.write_text(json.dumps(transformers.CLIPConfig().to_dict()))
    assert read_transformers(file)[0] == ours


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dpt_jax" / "buckets"


def test_only_needed_files_are_copied(bucket, tiny_clip_dir, tiny_clip, tmp_path, cache):
    """Other files of the folder stay where they are."""
    folder = shutil.copytree(tiny_clip_dir, tmp_path / "clip")
    (folder / "tf_model.h5").write_bytes(b"large")
    put_folder(folder, f"{bucket}/clip")
    assert_same(load_clip(f"{bucket}/clip"), tiny_clip)
    assert_same(load_clip(f"{bucket}/clip/{SAFE}"), tiny_clip)
    copied = {file.name for file in cache.rglob("*") if file.is_file()}
    assert SAFE in copied
    assert "tf_model.h5" not in copied
    (as_path(bucket) / "clip" / SAFE).write_bytes(b"damaged")
    refused(rf"{cache}.*{SAFE}", load_clip, f"{bucket}/clip")


@pytest.mark.parametrize("layout", ["transformers", "open_clip", "orbax"])
def test_a_saved_folder_is_read(tiny, bucket, tmp_path, cache, layout):
    """On a disk, where its name looks like a pattern, and in a bucket."""
    for target in (as_path(tmp_path / "a[b]*?" / "clip"), as_path(f"{bucket}/clip")):
        save_clip(tiny, target, layout)
        assert_same(load_clip(str(target)), tiny)
        refused("clip", save_clip, tiny, target, layout)


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
def test_a_bucket_without_the_model(bucket, folder, cache):
    (as_path(bucket) / "empty" / "notes.txt").write_text("nothing")
    refused(f"{bucket}/{folder}", load_clip, f"{bucket}/{folder}")
