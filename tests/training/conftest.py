"""What tests of sweeps share."""

import pytest

from tests.helpers.golden import SMALL


@pytest.fixture
def overrides(clip_dir):
    """Small runs on the small images."""
    return {
        "clip.weights": str(clip_dir),
        "dataset.root": str(SMALL / "images"),
        "text_prompt.length": 2,
        "train.epochs": 1,
    }
