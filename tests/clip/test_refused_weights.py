"""Weights and configurations that are not of a CLIP or incomplete are refused by name."""

import json
import re
import shutil
import time

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.numpy import load_file, save_file

from dpt_jax.clip.pretrained import BUNDLED, load_clip, locate
from tests.helpers.commands import refused
from tests.helpers.weight_files import tokenizer_json, torch_bytes, torch_state, write_shards

TINY = BUNDLED / "tiny-clip"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def test_shards_that_are_not_what_the_index_says(copy, source):
    index = write_shards(copy, load_file(source / "model.safetensors"))
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
def test_file_that_is_another_thing_is_named(copy, name, data, says):
    (copy / name).write_bytes(data)
    refused(rf"{copy / name}.*{says}", load_clip, str(copy))


@pytest.mark.parametrize(
    "name", ["logit_bias", "visual.attn_pool.query", "visual.transformer.resblocks.0.attn.lora_A"]
)
def test_tensor_of_another_model_is_named(copy, openai, name):
    tensors = {n: np.asarray(x) for n, x in openai.items()}
    save_file({**tensors, name: np.zeros(3, np.float32)}, copy / "open_clip_model.safetensors")
    refused(name, load_clip, str(copy))


@pytest.mark.parametrize("name", ["ViT-H-14", "RN50", "hf-hub:laion/some-clip", "no/file.pt", " "])
def test_name_that_is_neither_a_path_nor_an_id(name):
    refused(rf"{name} is neither", load_clip, name)


def change(tensors, name, how):
    if how == "missing":
        del tensors[name]
    elif how == "shape":
        tensors[name] = np.zeros((3, 5), np.float32)
    elif how == "surplus":
        tensors[f"{name}.more"] = np.zeros(3, np.float32)
    elif how == "integers":
        tensors[name] = np.zeros(tensors[name].shape, np.int64)
    else:
        tensors[name] = np.full(tensors[name].shape, np.nan, np.float32)


@pytest.mark.parametrize("how", ["missing", "shape", "surplus", "integers"])
def test_tensor_that_does_not_fit_is_named(copy, source, openai, tmp_path, how):
    name = "vision_model.encoder.layers.1.mlp.fc1.weight"
    tensors = load_file(source / "model.safetensors")
    change(tensors, name, how)
    save_file(tensors, copy / "model.safetensors")
    refused(rf"{copy / 'model.safetensors'}.*{name}", load_clip, str(copy))

    name = "visual.transformer.resblocks.1.attn.out_proj.weight"
    tensors = dict(openai)
    change(tensors, name, how)
    torch.save(torch_state(tensors), tmp_path / "tiny.pt")
    shutil.copy(source / "config.json", tmp_path)
    refused(rf"{tmp_path / 'tiny.pt'}.*{name}", load_clip, str(tmp_path / "tiny.pt"))


def test_weights_that_are_not_finite_are_named(copy, source):
    tensors = load_file(source / "model.safetensors")
    change(tensors, "vision_model.encoder.layers.1.mlp.fc1.weight", "nan")
    save_file(tensors, copy / "model.safetensors")
    refused(r"model\.safetensors.*mlp_in/kernel", load_clip, str(copy))


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("kept", [100, 200_000])
def test_truncated_file_is_named(copy, source, name, kept):
    tensors = load_file(source / "model.safetensors")
    whole = {
        "model.safetensors": lambda: (source / name).read_bytes(),
        "pytorch_model.bin": lambda: torch_bytes(torch_state(tensors)),
    }[name]()
    (copy / name).write_bytes(whole[:kept])
    refused(str(copy / name), load_clip, str(copy))


def test_folder_without_weights_or_sizes(copy, source, tmp_path):
    refused(str(copy), load_clip, str(copy))
    shutil.copy(source / "model.safetensors", tmp_path)
    refused(r"config\.json is missing", load_clip, str(tmp_path))


@pytest.fixture
def tiny(tmp_path):
    """A folder with all files that transformers' layout has."""
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(TINY / name, tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_json(TINY)), encoding="utf-8")
    write_shards(tmp_path, load_file(TINY / "model.safetensors"))
    return tmp_path


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
def test_value_of_a_configuration_that_is_not_supported_is_named(tiny, part, key, value):
    file = tiny / "config.json"
    raw = json.loads(file.read_text())
    (raw[part] if part else raw)[key] = value
    file.write_text(json.dumps(raw))
    refused(rf"{file}.*{re.escape(repr(value))}", load_clip, str(tiny))


def test_without_a_network_one_attempt_is_made_and_what_helps_is_named(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits to try again"))
    refused(r"mine/clip.*tiny-clip.*hf download mine/clip", locate, "mine/clip")
    refused("openai/clip-vit-base-patch16", locate, "ViT-B/16")
