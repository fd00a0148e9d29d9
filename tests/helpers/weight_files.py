"""Weights and vocabularies in other formats, and a comparison of two CLIPs."""

import io
import json
import pathlib

import jax
import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import CLIPTokenizerFast


def assert_same(clip, expected):
    assert clip.config == expected.config
    assert jax.tree.structure(clip.params) == jax.tree.structure(expected.params)
    jax.tree.map(np.testing.assert_array_equal, clip.params, expected.params)
    assert clip.digest == expected.digest
    text = "a photo of a sea horse."
    assert clip.tokenizer.encode(text) == expected.tokenizer.encode(text)


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


def tokenizer_json(folder: pathlib.Path) -> dict:
    """The tokenizer.json that transformers writes for a vocab.json and merges.txt."""
    return json.loads(CLIPTokenizerFast.from_pretrained(folder).backend_tokenizer.to_str())
