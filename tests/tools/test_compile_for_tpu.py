"""The parts of the TPU benchmark that need no TPU compiler.

Its programs are lowered in tests/test_precision.py.
"""

import pytest

from benchmarks import compile_for_tpu
from benchmarks.random_clip import clip_shapes
from dpt_jax.errors import UserError


def test_an_unknown_topology_is_refused():
    with pytest.raises(UserError, match=r"--topology=v5e: .*v5e:2x2"):
        compile_for_tpu.chip_of("v5e")


def test_the_shapes_have_the_types_of_loaded_weights():
    shapes = clip_shapes("vit-b-32", "bfloat16")
    assert shapes["logit_scale"].dtype == "float32"
    assert shapes["vision"]["ln_post"]["scale"].dtype == "float32"
    assert shapes["vision"]["transformer"]["blocks"]["mlp_in"]["bias"].dtype == "bfloat16"
