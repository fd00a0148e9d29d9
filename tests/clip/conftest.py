"""A tiny CLIP as a directory of transformers, as OpenAI's tensors, and as it is read."""

import shutil

import pytest

from dpt_jax.clip.pretrained import load_clip
from tests.helpers import make_clip


@pytest.fixture(scope="session")
def openai():
    """Weights under OpenAI's names."""
    sizes = {k: v for k, v in make_clip.TINY.items() if k != "th"}
    return make_clip.seeded(make_clip.openai_shapes(**sizes), seed=3)


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
