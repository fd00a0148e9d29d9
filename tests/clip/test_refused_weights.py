"""Weights that are not those of a CLIP, or not whole: refused by name."""

import json
import shutil

import flax.serialization
import flax.traverse_util
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from dpt_jax.clip.pretrained import load_clip
from dpt_jax.errors import UserError
from tests.helpers.weight_files import as_flax, torch_bytes, torch_state, write_shards


def test_shards_that_are_not_what_the_index_says(copy, source):
    index = write_shards(copy, load_file(source / "model.safetensors"))
    whole = json.loads(index.read_text())
    left = dict(whole["weight_map"])
    del left["logit_scale"]
    index.write_text(json.dumps({"weight_map": left}))
    with pytest.raises(UserError, match="has tensor logit_scale, against what"):
        load_clip(str(copy))
    index.write_text(json.dumps({"weight_map": {"logit_scale": "../../secret.safetensors"}}))
    with pytest.raises(UserError, match=r"weight_map\.logit_scale is"):
        load_clip(str(copy))
    index.write_text(json.dumps(whole))
    (copy / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="the model is incomplete"):
        load_clip(str(copy))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>", "HTML"),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "flax_model.msgpack", "pytorch_model.bin"])
def test_file_that_is_another_thing_is_named(copy, name, data, says):
    (copy / name).write_bytes(data)
    with pytest.raises(UserError, match=says) as error:
        load_clip(str(copy))
    assert str(copy / name) in str(error.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("visual.trunk.cls_token", "timm"),
        ("visual.attn_pool.query", "attentional pooling"),
        ("logit_bias", "SigLIP"),
        ("visual.blocks.0.norm1.weight", "EVA"),
        ("image_encoder.model.x", "MobileCLIP"),
        ("visual.transformer.resblocks.0.attn.lora_A", "LoRA"),
        ("text_decoder.ln_final.weight", "CoCa"),
    ],
)
def test_tensors_of_another_model_are_refused_by_its_name(copy, openai, name, says):
    tensors = {n: np.asarray(x) for n, x in openai.items()}
    save_file({**tensors, name: np.zeros(3, np.float32)}, copy / "open_clip_model.safetensors")
    with pytest.raises(UserError, match=says):
        load_clip(str(copy))


def test_tensorflow_weights_alone(copy):
    (copy / "tf_model.h5").write_bytes(b"x")
    with pytest.raises(UserError, match=r"TensorFlow alone \(tf_model\.h5\)"):
        load_clip(str(copy))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ViT-B/32", "openai/clip-vit-base-patch32"),
        ("ViT-L/14@336px", "openai/clip-vit-large-patch14-336"),
        ("ViT-B-16", "openai/clip-vit-base-patch16"),
        ("ViT-H-14", "name of an architecture"),
        ("hf-hub:laion/some-clip", "write laion/some-clip here"),
        ("RN50", "ResNet"),
        ("nobody/here.pt", "no file or directory"),
        (" ", "is empty"),
    ],
)
def test_name_that_is_no_path_says_what_is_meant(name, says):
    with pytest.raises(UserError, match=says):
        load_clip(name)


def change(tensors, name, how):
    if how == "missing":
        del tensors[name]
    elif how == "shape":
        tensors[name] = np.zeros((3, 5), np.float32)
    elif how == "surplus":
        tensors[f"{name}.more"] = np.zeros(3, np.float32)
    elif how == "integers":
        tensors[name] = np.zeros(tensors[name].shape, np.int64)


@pytest.mark.parametrize(
    ("how", "says"),
    [("missing", "is missing"), ("shape", "shape"), ("surplus", "not part"), ("integers", "int64")],
)
def test_tensor_that_does_not_fit_is_named(copy, source, openai, tmp_path, how, says):
    name = "vision_model.encoder.layers.1.mlp.fc1.weight"
    tensors = load_file(source / "model.safetensors")
    change(tensors, name, how)
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(UserError, match=says) as error:
        load_clip(str(copy))
    assert name in str(error.value)
    assert str(copy / "model.safetensors") in str(error.value)

    name = "visual.transformer.resblocks.1.attn.out_proj.weight"
    tensors = dict(openai)
    change(tensors, name, how)
    torch.save(torch_state(tensors), tmp_path / "tiny.pt")
    shutil.copy(source / "config.json", tmp_path)
    with pytest.raises(UserError, match=says) as error:
        load_clip(str(tmp_path / "tiny.pt"))
    assert name in str(error.value)


@pytest.mark.parametrize("name", ["model.safetensors", "flax_model.msgpack", "pytorch_model.bin"])
@pytest.mark.parametrize("kept", [0, 100, 200_000])
def test_truncated_file_is_named(copy, source, name, kept):
    tensors = load_file(source / "model.safetensors")
    whole = {
        "model.safetensors": lambda: (source / name).read_bytes(),
        "flax_model.msgpack": lambda: flax.serialization.msgpack_serialize(as_flax(tensors)),
        "pytorch_model.bin": lambda: torch_bytes(torch_state(tensors)),
    }[name]()
    (copy / name).write_bytes(whole[:kept])
    with pytest.raises(UserError) as error:
        load_clip(str(copy))
    assert str(copy / name) in str(error.value)


@pytest.mark.parametrize("model_type", ["siglip", "bert"])
def test_other_architecture_is_refused(copy, source, model_type):
    shutil.copy(source / "model.safetensors", copy)
    raw = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**raw, "model_type": model_type}))
    with pytest.raises(UserError, match=model_type):
        load_clip(str(copy))


def test_directory_without_weights_or_sizes(copy, source, tmp_path):
    with pytest.raises(UserError, match="no CLIP weights"):
        load_clip(str(copy))
    shutil.copy(source / "model.safetensors", tmp_path)
    with pytest.raises(UserError, match=r"config\.json is missing"):
        load_clip(str(tmp_path))
