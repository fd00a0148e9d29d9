"""Answers that are not finite are no answers: they are refused, with the likely cause."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from dpt_jax.errors import UserError
from dpt_jax.settings import flat


def check_finite(
    answers: Mapping[str, np.ndarray], prompts: Mapping[str, Any], params: Mapping[str, Any]
) -> None:
    """Raise UserError where an array of answers has a value that is not finite.

    answers: by what they are called in a sentence, those of plain CLIP first. prompts, params:
    what the answers were made with; the first tensor in them that is not finite is named.
    """
    for what, array in answers.items():
        if not np.isfinite(array).all():
            raise UserError(
                f"{what} are not finite: {_cause(what, prompts, params)}. No answer is given."
            )


def _cause(what: str, prompts: Mapping[str, Any], params: Mapping[str, Any]) -> str:
    for whose, tree in (("prompt", prompts), ("weight of CLIP", params)):
        for name, value in flat(tree).items():
            if not bool(jnp.isfinite(value).all()):
                return f"the {whose} {name} has such values"
    if "plain CLIP" in what:
        return "look at CLIP's weights and vocabulary, or try dtype=float32"
    return "look at the prompts and at CLIP's weights, or try dtype=float32"
