"""A saved model folder remembers the whole model, wherever it lies."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from etils import epath
from transformers import CLIPConfig

from dpt_jax.clip.config_files import read_transformers
from dpt_jax.clip.preprocessing import Preprocessing
from dpt_jax.clip.pretrained import load_clip, save_clip
from dpt_jax.errors import UserError
from dpt_jax.io import as_path

OWN = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bilinear", "squash")


@pytest.fixture(scope="module")
def tiny():
    clip = load_clip("tiny-clip")
    return clip._replace(config=dataclasses.replace(clip.config, preprocessing=OWN))


@pytest.fixture(scope="module")
def written(tiny, tmp_path_factory):
    target = tmp_path_factory.mktemp("saved") / "clip"
    save_clip(tiny, as_path(target))
    return target


def test_preprocessing_and_end_of_text_are_remembered(tiny, written):
    again = load_clip(str(written))
    assert again.config == tiny.config
    assert (again.tokenizer.start, again.tokenizer.end) == (4512, 4513)
    text = json.loads((written / "config.json").read_text())["text_config"]
    assert (text["bos_token_id"], text["eos_token_id"]) == (4512, 4513)


@pytest.mark.parametrize("layout", ["transformers", "open_clip"])
def test_folder_that_looks_like_a_pattern(tiny, tmp_path, layout):
    target = tmp_path / "a[b]*?" / "clip"
    save_clip(tiny, as_path(target), layout)
    again = load_clip(str(target))
    assert again.config == tiny.config
    assert again.digest == tiny.digest
    jax.tree.map(np.testing.assert_array_equal, again.params, tiny.params)
    with pytest.raises(UserError, match="clip"):
        save_clip(tiny, as_path(target), layout)


def test_missing_keys_have_the_defaults_of_transformers(tmp_path):
    file = epath.Path(tmp_path) / "config.json"
    file.write_text('{"model_type": "clip"}')
    ours = read_transformers(file).config
    file.write_text(json.dumps(CLIPConfig().to_dict()))
    assert read_transformers(file).config == ours
