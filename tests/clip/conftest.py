"""A tiny CLIP as a transformers folder, as OpenAI's tensors, and as loaded."""

import shutil

import pytest

from dpt_jax.clip.pretrained import load_clip
from tests.helpers import make_clip


@pytest.fixture(scope="session")
def openai():
    """Weights under OpenAI's names."""
    return make_clip.openai(seed=3, **make_clip.TINY)


@pytest.fixture(scope="session")
def source(tiny_clip_dir):
    return tiny_clip_dir


@pytest.fixture(scope="session")
def expected(source):
    return load_clip(str(source))


@pytest.fixture
def copy(source, tmp_path):
    """A copy of the model directory without its weights."""
    directory = tmp_path / "copy"
    shutil.copytree(source, directory, ignore=shutil.ignore_patterns("model.safetensors"))
    return directory
