"""The parts of the TPU benchmark that need no TPU compiler."""

import importlib.util

import jax
import pytest

from benchmarks import compile_for_tpu
from benchmarks.chips import CHIPS, chip_of, least_ms
from benchmarks.random_clip import clip_shapes
from benchmarks.tpu_programs import make_case, programs
from dpt_jax.errors import UserError


@pytest.mark.parametrize("kind", CHIPS)
def test_every_chip_is_found_by_its_topology(kind):
    chip = CHIPS[kind]
    assert chip_of(chip.topology) is chip
    # The operations of a second, and the memory read once in bytes.
    assert least_ms(chip, chip.flops, chip.memory_bandwidth) == {"flops": 1000, "memory": 1000}


@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e", "", "v5e:"])
def test_an_unknown_topology_is_one_sentence(topology):
    with pytest.raises(UserError, match="give one such as v5e:2x2"):
        chip_of(topology)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_libtpu_it_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr(compile_for_tpu, "ENVIRONMENT", {})
    with pytest.raises(SystemExit) as ended:
        compile_for_tpu.main(["--topology=v5e:2x2"])
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.err.strip() == (
        "libtpu is not installed, and it holds the TPU compiler: pip install libtpu."
    )
    assert not said.out


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


@pytest.mark.parametrize(("mode", "names"), [("train", ["step"]), ("eval", ["classify", "texts"])])
def test_the_programs_are_lowered_from_shapes_alone(mode, names):
    """On the devices that are given, here the CPU's; nothing is computed and no weight is made."""
    options = compile_for_tpu.parse(["--classes=3", "--batch=2", f"--mode={mode}"])
    on = jax.devices()[:1]
    case = make_case(options, CHIPS["v5e"], len(on))
    assert case.model.remat == "matmuls"
    found = programs(case, on)
    assert [name for name, _ in found] == names
    text = found[0][1].as_text()
    assert "2x224x224x3xui8" in text
    assert "bf16" in text


def test_the_shapes_have_the_types_of_loaded_weights():
    shapes = clip_shapes("vit-b-32", "bfloat16")
    assert shapes["logit_scale"].dtype == "float32"
    assert shapes["vision"]["ln_post"]["scale"].dtype == "float32"
    assert shapes["vision"]["transformer"]["blocks"]["mlp_in"]["bias"].dtype == "bfloat16"
