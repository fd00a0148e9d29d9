"""float32 means float32: what a TPU or a GPU is asked to multiply, read off the lowered program."""

import re

import jax
import pytest

from benchmarks import compile_for_tpu
from benchmarks.chips import CHIPS
from benchmarks.tpu_programs import make_case, programs

pytestmark = pytest.mark.compiles

PRODUCT = re.compile(r"stablehlo\.(?:dot_general|convolution).*")
OPERANDS = re.compile(r": \(tensor<(?:\d+x)*(\w+)>, tensor<(?:\d+x)*(\w+)>\) -> ")


def products(program):
    """Return (type of the operands, whether they are multiplied as they are) of each product."""
    found = []
    for line in PRODUCT.findall(program):
        types = OPERANDS.search(line)
        assert types, line
        found.append((set(types.groups()), "precision = [HIGHEST, HIGHEST]" in line))
    return found


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_matrices_of_float32_are_not_rounded_before_they_are_multiplied(dtype, mode):
    """In DPT's training step, its gradients included, and in the two programs of its evaluation.

    Of bfloat16's products one kind has a float32 matrix, the gradient of attention's scores.
    """
    options = compile_for_tpu.parse(
        ["--classes=3", "--batch=2", f"--mode={mode}", f"--dtype={dtype}"]
    )
    case = make_case(options, CHIPS["v5e"], 1)
    for _, lowered in programs(case, jax.devices()[:1]):
        found = products(lowered.as_text())
        assert found
        assert not [types for types, whole in found if types == {"f32"} and not whole]
        if dtype == "float32":
            assert all(types == {"f32"} for types, _ in found)
