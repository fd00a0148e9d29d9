"""float32 means float32: types of the products in the lowered program for a TPU or a GPU."""

import re

import jax
import pytest

from benchmarks.compile_for_tpu import make_case, parse, programs

pytestmark = pytest.mark.compiles

PRODUCT = re.compile(r"stablehlo\.(?:dot_general|convolution).*")
OPERANDS = re.compile(r": \(tensor<(?:\d+x)*(\w+)>, tensor<(?:\d+x)*(\w+)>\) -> ")

# Layer norms, lengths of features, losses.
ROOTS = re.compile(r"stablehlo\.(?:rsqrt|sqrt|log) .*[x<](\w+)>")
# With the line before, which computes the operand: a softmax subtracts, a sigmoid negates.
EXPONENTIAL = re.compile(r"stablehlo\.(\w+) .*\n.*stablehlo\.exponential .*[x<](\w+)>")
EXCHANGED = re.compile(r'"stablehlo\.all_\w+"\(.*?: \(tensor<(?:\d+x)*(\w+)>\) ->', re.DOTALL)
# But those over one row.
SUMS = re.compile(
    r"reduce\(.* stablehlo\.add (?!across dimensions = \[0\] : \(tensor<1x).*[x<](\w+)>\n"
)
RESULTS = re.compile(r"func public @main\(.*-> \((.*)\) \{")


def products(program):
    """Return (type of the operands, whether they are not rounded) of each product."""
    found = []
    for line in PRODUCT.findall(program):
        types = OPERANDS.search(line)
        assert types, line
        found.append((set(types.groups()), "precision = [HIGHEST, HIGHEST]" in line))
    return found


@pytest.mark.parametrize(("mode", "names"), [("train", ["step"]), ("eval", ["classify", "texts"])])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_matrices_of_float32_are_not_rounded_before_they_are_multiplied(dtype, mode, names):
    """In DPT's training step, its gradients included, and in the two programs of its evaluation.

    They are lowered from shapes. With bfloat16 the gradient of attention's scores is float32.
    """
    options = parse(["--classes=20", "--batch=2", f"--mode={mode}", f"--dtype={dtype}"])
    case = make_case(options, 1)
    texts = {
        program.name: program.function.lower(*program.arguments).as_text()
        for program in programs(case, jax.devices()[:1])
    }
    assert list(texts) == names
    assert "2x224x224x3xui8" in texts[names[0]]
    for program in texts.values():
        found = products(program)
        assert found
        assert not [types for types, whole in found if types == {"f32"} and not whole]
        assert ("bf16" in program) == (dtype == "bfloat16")
        assert_float32(program, exchanges=mode == "train")


def assert_float32(program, exchanges):
    """Check what stays float32 even in bfloat16 towers, according to docs/devices.md."""
    assert set(ROOTS.findall(program)) == {"f32"}
    exponentials = set(EXPONENTIAL.findall(program))
    assert ("subtract", "f32") in exponentials
    assert {made_by for made_by, type_ in exponentials if type_ == "bf16"} <= {"negate"}
    # Also the gradient of what images or texts share.
    assert set(SUMS.findall(program)) <= {"f32", "i32"}
    # Gradients, counts and texts of all devices; prompts, optimizer, losses, logits, features.
    assert set(EXCHANGED.findall(program)) <= {"f32", "i32"}
    assert EXCHANGED.search(program) or not exchanges
    (results,) = RESULTS.findall(program)
    assert set(re.findall(r"tensor<(?:\d+x)*(\w+)>", results)) <= {"f32", "i32"}
