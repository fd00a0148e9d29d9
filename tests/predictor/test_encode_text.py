"""Text features of any names, one program for all calls."""

import numpy as np
import pytest

import dpt_jax

pytestmark = pytest.mark.compiles


def test_features_of_names_are_those_of_the_packed_texts(trained):
    """A predictor encodes its own classes in packed rows."""
    names = ["dog", "a rather long name of a class that has more than sixteen tokens in its name"]
    packed = dpt_jax.load(trained, names, batch_size=1).encode_text()
    np.testing.assert_allclose(dpt_jax.load(trained).encode_text(names), packed, atol=1e-5)
