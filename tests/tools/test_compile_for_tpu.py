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


def test_collectives_are_counted_with_their_bytes():
    text = """
      %psum.7 = bf16[1,256]{1,0:T(8,128)} all-reduce(%fusion.2), channel_id=1
      %a = (f32[4]{0}, s32[2,2]{1,0}) all-reduce(%b, %c), channel_id=2
      %g = f32[8,3]{1,0} all-gather-start(%x), dimensions={0}
      %h = f32[8,3]{1,0} fusion(%all-gather.3), kind=kLoop
    """
    assert compile_for_tpu.collectives(text) == {
        "all-reduce": {"count": 2, "bytes": 512 + 16 + 16},
        "all-gather": {"count": 1, "bytes": 96},
    }


def test_the_shapes_have_the_types_of_loaded_weights():
    shapes = clip_shapes("vit-b-32", "bfloat16")
    assert shapes["logit_scale"].dtype == "float32"
    assert shapes["vision"]["ln_post"]["scale"].dtype == "float32"
    assert shapes["vision"]["transformer"]["blocks"]["mlp_in"]["bias"].dtype == "bfloat16"
