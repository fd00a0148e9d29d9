"""Every format of weights gives the same CLIP."""

import shutil

import flax.traverse_util
import jax
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.numpy import load_file, save_file
from transformers import CLIPModel

from dpt_jax.clip.layouts import tensors_of
from dpt_jax.clip.model import param_shapes
from dpt_jax.clip.pretrained import BUNDLED, load_clip
from tests.helpers.commands import refused
from tests.helpers.weight_files import assert_same, torch_state, write_shards


def test_parameters_are_the_tree_that_the_model_expects(expected):
    shapes = jax.tree.map(lambda x: x.shape, expected.params)
    assert shapes == jax.tree.map(lambda x: x.shape, param_shapes(expected.config))


def test_pytorch_file_with_old_index_buffers(copy, source, expected):
    tensors = torch_state(load_file(source / "model.safetensors"))
    tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    torch.save(tensors, copy / "pytorch_model.bin")
    assert_same(load_clip(str(copy)), expected)


def test_single_weight_file(source, expected):
    assert_same(load_clip(str(source / "model.safetensors")), expected)


def test_prefix_of_several_devices(copy, source, expected):
    tensors = load_file(source / "model.safetensors")
    save_file({f"module.{k}": v for k, v in tensors.items()}, copy / "model.safetensors")
    assert_same(load_clip(str(copy)), expected)


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_sharded_weights(copy, source, expected, ending):
    index = write_shards(copy, load_file(source / "model.safetensors"), ending)
    assert_same(load_clip(str(copy)), expected)
    assert_same(load_clip(str(index)), expected)
    refused("model-00001-of-00002", load_clip, str(copy / f"model-00001-of-00002.{ending}"))


def test_half_precision_file(copy, source, expected):
    halves = {k: v.astype(np.float16) for k, v in load_file(source / "model.safetensors").items()}
    save_file(halves, copy / "model.safetensors")
    clip = load_clip(str(copy))
    assert {x.dtype for x in jax.tree.leaves(clip.params)} == {np.dtype(np.float32)}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        clip.params,
        expected.params,
    )


def test_bfloat16_keeps_layer_norm_and_temperature_in_float32(source, expected):
    clip = load_clip(str(source), jax.numpy.bfloat16)
    assert clip.digest == expected.digest
    flat = flax.traverse_util.flatten_dict(clip.params, sep="/")
    assert {name for name, x in flat.items() if x.dtype == np.float32} == {
        name for name in flat if "/ln_" in name or name == "logit_scale"
    }


def test_hub_id_from_the_local_cache(source, expected, tmp_path, monkeypatch):
    """As on a machine without network that has downloaded the model before."""
    snapshot = tmp_path / "models--someone--tiny" / "snapshots" / "0123"
    shutil.copytree(source, snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("0123")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_same(load_clip("someone/tiny"), expected)
    refused("someone/else", load_clip, "someone/else")


def test_bundled_model_loads_in_transformers_too():
    """The tiny CLIP is an ordinary model directory, not one for this project only."""
    state = CLIPModel.from_pretrained(BUNDLED / "tiny-clip").state_dict()
    ours = load_clip("tiny-clip")
    tensors = tensors_of(ours.params, ours.config)
    assert sorted(state) == sorted(tensors)
    for name, value in state.items():
        np.testing.assert_array_equal(value.float().numpy(), tensors[name])
