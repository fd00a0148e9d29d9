"""The tests of test_parity.py for related methods, against arrays of their published code."""

import pytest

from tests.helpers.published_cases import Case
from tests.test_parity import *  # noqa: F403

pytestmark = pytest.mark.compiles
NAMES = ("cocoop", "ivlp", "kgcoop", "maple", "promptsrc_all")


@pytest.fixture(scope="module", params=[f"family/{name}" for name in NAMES])
def case(request, golden_clip_dir) -> Case:
    return Case(request.param, golden_clip_dir)
