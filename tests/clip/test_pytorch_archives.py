"""OpenAI's archives and training checkpoints: known by their tensors, and never run."""

import os
import shutil

import numpy as np
import pytest
import torch
from etils import epath

from dpt_jax.clip.config import OPENAI_MODELS
from dpt_jax.clip.pretrained import load_clip, recognise
from tests.helpers.commands import refused
from tests.helpers.weight_files import assert_same, torch_bytes, torch_state

MARKS = {"input_resolution": 16, "context_length": 77, "vocab_size": 49408}


@pytest.mark.parametrize("kind", ["archive", "checkpoint"])
def test_sizes_and_activation_are_not_guessed(openai, source, expected, tmp_path, kind):
    """Only those of OpenAI's own models are known. Other archives and training checkpoints, whose
    tensors look alike, need their configuration.
    """
    whole = {**torch_state(openai), **{k: torch.tensor(v) for k, v in MARKS.items()}}
    if kind == "checkpoint":
        state = {f"module.{name}": value for name, value in torch_state(openai).items()}
        optimizer = {"state": {}, "param_groups": []}
        whole = {"epoch": 2, "name": "run", "state_dict": state, "optimizer": optimizer}
    file = tmp_path / "tiny.pt"
    torch.save(whole, file)
    refused(file.name, load_clip, str(file))
    shutil.copy(source / "config.json", tmp_path)
    assert_same(load_clip(str(file)), expected)


@pytest.mark.parametrize("name", OPENAI_MODELS)
def test_openai_archive_is_known_by_its_sizes(name):
    """Only shapes matter, so arrays without memory stand for the weights."""
    width, text_width, patch, positions = {
        "ViT-B/32": (768, 512, 32, 50),
        "ViT-B/16": (768, 512, 16, 197),
        "ViT-L/14": (1024, 768, 14, 257),
        "ViT-L/14@336px": (1024, 768, 14, 577),
    }[name]
    shapes = {
        "visual.conv1.weight": (width, 3, patch, patch),
        "visual.positional_embedding": (positions, width),
        "token_embedding.weight": (49408, text_width),
        **dict.fromkeys(MARKS, ()),
    }
    tensors = {n: np.broadcast_to(np.float32(0), shape) for n, shape in shapes.items()}
    config = recognise(tensors, epath.Path("x.pt"))
    assert config == OPENAI_MODELS[name]
    assert (config.vision.heads, config.text.heads) == (width // 64, text_width // 64)


def test_openai_archive_is_read_without_running_it(openai, source, expected, tmp_path):
    """As OpenAI publishes them: a TorchScript program whose modules hold the weights."""

    class Part(torch.nn.Module):
        pass

    root = Part()
    for name, value in openai.items():
        *path, leaf = name.split(".")
        node = root
        for step in path:
            if step not in dict(node.named_children()):
                node.add_module(step, Part())
            node = getattr(node, step)
        node.register_parameter(leaf, torch.nn.Parameter(torch.tensor(value)))
    file = tmp_path / "tiny.pt"
    torch.jit.save(torch.jit.script(root), str(file))
    shutil.copy(source / "config.json", tmp_path)
    assert_same(load_clip(str(file)), expected)


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
