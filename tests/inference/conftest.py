"""The predictor of the shared training, and images to ask it about."""

import pytest

import dpt_jax
from dpt_jax.data.folder import find_images
from tests.helpers.golden import SMALL


@pytest.fixture(scope="session")
def predictor(trained):
    return dpt_jax.load(trained, batch_size=4)


@pytest.fixture(scope="session")
def files():
    return find_images([str(SMALL / "images" / "test")])
