"""What float32 means on devices that multiply in fewer bits."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

Given = ParamSpec("Given")
Made = TypeVar("Made")


def exact(function: Callable[Given, Made]) -> Callable[Given, Made]:
    """Return the function, with its products of float32 matrices exact to float32.

    By default a TPU rounds such matrices to bfloat16 before it multiplies, and a
    GPU to TF32. Products of bfloat16 matrices stay as they are.
    """

    @functools.wraps(function)
    def wrapped(*given: Given.args, **named: Given.kwargs) -> Made:
        with jax.default_matmul_precision("highest"):
            return function(*given, **named)

    return wrapped
