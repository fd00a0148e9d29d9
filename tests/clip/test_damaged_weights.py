"""Weights that are damaged, or no numbers that a CLIP can have."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dpt_jax.clip.pretrained import load_clip
from dpt_jax.errors import UserError
from tests.helpers.faults import damaged, write


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(clip_dir, tmp_path, value):
    shutil.copytree(clip_dir, tmp_path / "clip")
    tensors = load_file(clip_dir / "model.safetensors")
    name = "vision_model.encoder.layers.2.mlp.fc1.weight"
    tensors[name][3, 5] = value
    save_file(tensors, tmp_path / "clip" / "model.safetensors")
    with pytest.raises(
        UserError, match=r"model\.safetensors: vision.transformer.blocks.* not finite"
    ):
        load_clip(str(tmp_path / "clip"))


def test_weights_of_whole_numbers_are_refused(clip_dir, tmp_path):
    shutil.copytree(clip_dir, tmp_path / "clip")
    tensors = {
        name: x.astype(np.int32) for name, x in load_file(clip_dir / "model.safetensors").items()
    }
    save_file(tensors, tmp_path / "clip" / "model.safetensors")
    with pytest.raises(UserError, match="is int32, not floating point"):
        load_clip(str(tmp_path / "clip"))


def fuzz_weights(clip_dir, folder, rounds):
    """Damages each file of a model again and again; how often it was recognised, and how often read
    all the same.
    """
    generator, refused, read = np.random.default_rng(0), 0, 0
    shutil.copytree(clip_dir, folder)
    for name in ("model.safetensors", "config.json", "vocab.json", "merges.txt"):
        whole = (folder / name).read_bytes()
        header = (
            8 + int.from_bytes(whole[:8], "little") if name == "model.safetensors" else len(whole)
        )
        for _ in range(rounds):
            # Of the weights' file mostly its header, since a bit of a number changed is a number.
            for kind, content in damaged(whole[:header], generator):
                write(
                    folder / name,
                    None if content is None else content + whole[header:] * (kind != "cut"),
                )
                try:
                    clip = load_clip(str(folder))
                    clip.tokenizer.encode("a photo of a cat")
                    read += 1
                except UserError as reason:
                    assert str(folder) in str(reason)
                    refused += 1
                (folder / name).write_bytes(whole)
    return refused, read


def test_damaged_weights_are_refused_or_read(clip_dir, tmp_path):
    """And never end in another exception than the one that names the file."""
    refused, read = fuzz_weights(clip_dir, tmp_path / "clip", rounds=2)
    print(f"{refused} of {refused + read} damaged models refused")
    assert refused > 5
