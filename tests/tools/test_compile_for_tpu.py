"""The parts of the TPU benchmark that need no TPU compiler.

Its programs are lowered in tests/test_precision.py.
"""

import importlib.util

import pytest

from benchmarks import compile_for_tpu
from benchmarks.random_clip import clip_shapes
from dpt_jax.errors import UserError


@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e", "", "v5e:"])
def test_an_unknown_topology_is_refused(topology):
    with pytest.raises(UserError, match=f"--topology={topology}: .*v5e:2x2"):
        compile_for_tpu.chip_of(topology)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_libtpu_it_says_what_to_install():
    with pytest.raises(UserError, match="pip install libtpu"):
        compile_for_tpu.tpu_devices("v5e:2x2")


def test_the_shapes_have_the_types_of_loaded_weights():
    shapes = clip_shapes("vit-b-32", "bfloat16")
    assert shapes["logit_scale"].dtype == "float32"
    assert shapes["vision"]["ln_post"]["scale"].dtype == "float32"
    assert shapes["vision"]["transformer"]["blocks"]["mlp_in"]["bias"].dtype == "bfloat16"
