"""Text features of any names, one program for all calls."""

import pathlib

import numpy as np
import pytest

import dpt_jax
from configs import coop, zeroshot
from dpt_jax.predictor.predictor import Predictor
from dpt_jax.training import initial_prompts, setup
from dpt_jax.training.checkpoints import Saved

pytestmark = pytest.mark.compiles


def maps() -> int:
    """The memory maps of this process, of which each compiled program takes some."""
    return len(pathlib.Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.parametrize("method", [zeroshot, coop])
def test_other_names_do_not_compile_other_programs(method):
    config = method.get_config("emoji")
    config.text_prompt.init = ""
    prepared = setup.prepare(config)
    prompts = initial_prompts.initial_prompts(prepared)
    predictor = Predictor(prepared, Saved(1, prompts, {}), batch_size=1)
    names = [f"a {i} of {i % 7}" for i in range(100)]
    together = predictor.encode_text(names)
    np.testing.assert_allclose(predictor.encode_text(names[:2]), together[:2], atol=1e-5)
    before = maps()
    for i, name in enumerate(names):
        np.testing.assert_allclose(predictor.encode_text([name])[0], together[i], atol=1e-5)
    assert maps() < before + 50


def test_features_of_names_are_those_of_the_packed_texts(trained):
    """A predictor encodes its own classes in packed rows."""
    names = ["dog", "a rather long name of a class that has more than sixteen tokens in its name"]
    packed = dpt_jax.load(trained, names, batch_size=1).encode_text()
    np.testing.assert_allclose(dpt_jax.load(trained).encode_text(names), packed, atol=1e-5)
