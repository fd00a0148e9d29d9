"""A tiny CLIP as OpenAI's tensors, and as a model folder without its weights."""

import shutil

import pytest

from tests.helpers import make_clip


@pytest.fixture(scope="session")
def openai():
    """Weights under OpenAI's names."""
    return make_clip.openai(seed=3, **make_clip.TINY)


@pytest.fixture
def copy(tiny_clip_dir, tmp_path):
    """A copy of the model directory without its weights."""
    ignored = shutil.ignore_patterns("model.safetensors")
    return shutil.copytree(tiny_clip_dir, tmp_path / "copy", ignore=ignored)
