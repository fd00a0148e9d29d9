"""Text features of any names, one program for all calls."""

import pathlib

import numpy as np
import pytest

import dpt_jax
from configs import coop, zeroshot
from dpt_jax.predictor.predictor import Predictor
from dpt_jax.training import initial_prompts as adoption
from dpt_jax.training import setup as experiments
from dpt_jax.training.checkpoints import Saved

pytestmark = pytest.mark.compiles


def maps() -> int:
    """The memory maps of this process, of which Linux grants it 65,530."""
    return len(pathlib.Path("/proc/self/maps").read_text().splitlines())


def resident() -> int:
    """Kilobytes of memory that this process has."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


@pytest.mark.parametrize(("method", "calls"), [(zeroshot, 100), (coop, 1000)])
def test_a_thousand_calls_of_encode_text_are_one_program(method, calls):
    config = method.get_config("emoji")
    config.text_prompt.init = ""
    prepared = experiments.prepare(config)
    prompts = adoption.initial_prompts(prepared)
    predictor = Predictor(prepared, Saved(1, prompts, {}), batch_size=1)
    names = [f"a {i} of {i % 7}" for i in range(calls)]
    together = predictor.encode_text(names)
    np.testing.assert_allclose(predictor.encode_text(names[:2]), together[:2], atol=1e-5)
    before = maps(), resident()
    for i, name in enumerate(names):
        (own,) = predictor.encode_text([name])
        np.testing.assert_allclose(own, together[i], atol=1e-5)
    assert maps() < before[0] + 50
    assert resident() < before[1] + 50_000


def test_features_of_names_are_those_of_the_packed_texts(trained):
    """Of the same names as the classes of a predictor, which encodes them in packed rows."""
    names = ["dog", "a rather long name of a class that has more than sixteen tokens in its name"]
    packed = dpt_jax.load(trained, names, batch_size=1).encode_text()
    np.testing.assert_allclose(dpt_jax.load(trained).encode_text(names), packed, atol=1e-5)
