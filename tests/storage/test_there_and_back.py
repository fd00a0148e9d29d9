"""Checkpoints of the published code: read, and written as it reads them."""

import json
import shutil

import numpy as np
import pytest
import torch

from configs import dpt
from dpt_jax import settings
from dpt_jax.convert.checkpoints import (
    CAVPT,
    MODULES,
    VISUAL,
    prompts_from_published,
    published_from_prompts,
)
from dpt_jax.convert.published import convert_reference, reverse_reference
from dpt_jax.errors import UserError
from dpt_jax.training.checkpoints import load_newest
from tests.helpers.commands import in_process
from tests.helpers.configs import small_config
from tests.helpers.golden import SMALL
from tests.helpers.prompt_trees import same_bytes

pytestmark = pytest.mark.compiles


CHECKPOINT = SMALL / "checkpoint"
IMAGES = SMALL / "images"


def published(directory):
    """The state dicts of a published checkpoint, without what it does not learn."""
    found = {}
    for module in MODULES:
        (file,) = (directory / module).glob("model.pth.tar-*")
        contents = torch.load(file, weights_only=True)
        tensors = {
            k: v
            for k, v in contents["state_dict"].items()
            if k not in ("token_prefix", "token_suffix")
        }
        found[module] = {k: v.numpy() for k, v in tensors.items()}, contents["epoch"], file.name
    return found


def test_published_checkpoint_there_and_back(clip_dir, tmp_path):
    config = small_config(clip_dir)
    convert_reference(CHECKPOINT, tmp_path / "w", config, {})
    in_process(
        "-m",
        "dpt_jax",
        "convert",
        "reference",
        "--reverse",
        str(tmp_path / "w"),
        str(tmp_path / "back"),
    )
    before, after = published(CHECKPOINT), published(tmp_path / "back")
    for module in MODULES:
        assert same_bytes(after[module][0], before[module][0])
        assert after[module][1:] == before[module][1:] == (1, "model.pth.tar-1")
        name = (tmp_path / "back" / module / "checkpoint").read_text()
        assert name == "model.pth.tar-1\n"


def test_prompts_trained_here_there_and_back(trained, tmp_path):
    reverse_reference(trained, tmp_path / "published")
    config = settings.load(trained, dpt.get_config())
    convert_reference(tmp_path / "published", tmp_path / "back", config, {})
    back, own = load_newest(tmp_path / "back"), load_newest(trained)
    assert same_bytes(back.prompts, own.prompts)
    assert back.step == own.meta["epoch"] == 2


def test_cavpt_from_the_first_layer_leaves_an_empty_visual_prompt():
    """The published code makes that module all the same, and looks for its file."""
    cavpt = {
        name: {"kernel": np.ones((4, 5, 6), np.float32)}
        for name in ("query", "key", "value", "classifier")
    }
    cavpt["class_projection"] = {
        "kernel": np.ones((4, 7, 6), np.float32),
        "bias": np.ones((4, 6), np.float32),
    }
    cavpt |= {
        name: dict.fromkeys(("scale", "bias"), np.ones((4, 6), np.float32))
        for name in ("ln_classifier", "ln_prompt")
    }
    prompts = {"cavpt": {**cavpt, "global_tokens": np.ones((4, 10, 6), np.float32)}}
    modules = published_from_prompts(prompts, visual_length=3)
    assert set(modules) == {VISUAL, CAVPT}
    assert modules[VISUAL]["ctx"].shape == (0, 3, 6)
    assert same_bytes(prompts_from_published(modules), prompts)


def test_what_the_published_code_has_no_place_for(trained, tmp_path):
    deep = tmp_path / "deep"
    shutil.copytree(trained, deep)
    config = json.loads((deep / "config.json").read_text())
    config["text_prompt"]["depth"] = 2
    (deep / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="context tokens of several layers"):
        reverse_reference(deep, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match="is there already"):
        reverse_reference(trained, deep)
    config["method"] = "zeroshot"
    (deep / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="is zero-shot"):
        reverse_reference(deep, tmp_path / "new")
