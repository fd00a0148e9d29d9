"""Dual-modality prompt tuning (DPT) of CLIP in JAX and Flax."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dpt_jax.inference.predictor import Predictor

__version__ = "0.1.0"


def load(
    workdir: str | os.PathLike[str],
    classnames: Sequence[str] | None = None,
    clip: str = "",
    batch_size: int = 0,
) -> "Predictor":
    """A trained prompt, ready to classify: dpt_jax.load("runs/mine").predict(["a.jpg"]); see dpt_jax.predictor.load."""
    # Importing JAX takes seconds that reading a configuration need not wait for.
    from dpt_jax.inference.predictor import load

    return load(workdir, classnames, clip, batch_size)
