"""Floating-point operations of a program, counted from its matrix products."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.interpreters.partial_eval import dce_jaxpr

# Published peak rates of dense bfloat16 products, by prefix of JAX's device_kind, longer ones
# first. Per core if JAX counts two devices per chip (TPU v2, v3 and 7x).
PEAKS = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4 lite": 138e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
    "TPU7x": 1153.5e12,
    "NVIDIA A10G": 70e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L4": 121e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


def peak(device_kind: str) -> float | None:
    """Return the peak rate of a device in bfloat16 operations per second, None if unknown."""
    return next((rate for name, rate in PEAKS.items() if device_kind.startswith(name)), None)


def of(program: Callable[..., Any], *arguments: Any) -> float:
    """Return the operations of one call on one device: two per multiply-add.

    Only matrix products count, those in a loop once per iteration. Padding, masked pairs and
    recomputed activations (`train.remat`) count too, unused results do not. The program is traced
    but not compiled; its arguments may be shapes.
    """
    traced = jax.make_jaxpr(program)(*arguments).jaxpr
    used, _ = dce_jaxpr(traced, [True] * len(traced.outvars))
    return _operations(used)


def _operations(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive is jax.lax.dot_general_p:
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            each = math.prod(left[axis] for axis in contracted)
            total += 2.0 * each * math.prod(equation.outvars[0].aval.shape)
        # Programs in its parameters, such as the body of a loop.
        parts = [getattr(x, "jaxpr", x) for x in jax.tree.leaves(equation.params)]
        inner = sum(_operations(part) for part in parts if hasattr(part, "eqns"))
        total += equation.params.get("length", 1) * inner
    return total
