"""Refuse results that are not finite, and name the likely cause."""

from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax.numpy as jnp
import numpy as np

from dpt_jax.errors import UserError


def check_finite(
    results: Mapping[str, np.ndarray], prompts: Mapping[str, Any], params: Mapping[str, Any]
) -> None:
    """Raise UserError if an array is not finite.

    Args:
      results: Arrays by what they are called in a sentence, those of frozen CLIP first.
      prompts: Of the model. The first of its tensors that is not finite is named.
      params: CLIP's, in the same way.
    """
    for what, array in results.items():
        if not np.isfinite(array).all():
            raise UserError(f"{what} are not finite: {_cause(what, prompts, params)}.")


def _cause(what: str, prompts: Mapping[str, Any], params: Mapping[str, Any]) -> str:
    for whose, tree in (("prompt", prompts), ("weight of CLIP", params)):
        for name, value in flax.traverse_util.flatten_dict(tree, sep=".").items():
            if not bool(jnp.isfinite(value).all()):
                return f"the {whose} {name} has such values"
    of = "CLIP's weights" if "zero-shot CLIP" in what else "the prompts and CLIP's weights"
    return f"check {of}, or try dtype=float32"
