"""A classifier as one compiled program."""

import importlib
import json

import jax.export
import numpy as np
import onnxruntime
import pytest
from PIL import Image

import dpt_jax
from dpt_jax.config import method_config
from dpt_jax.methods import METHODS
from dpt_jax.predictor import program
from dpt_jax.predictor.predictor import Predictor
from dpt_jax.training import setup
from dpt_jax.training.checkpoints import Saved
from dpt_jax.training.initial_prompts import initial_prompts
from tests.helpers.commands import command, in_process, refused
from tests.helpers.configs import small_config
from tests.helpers.golden import SMALL
from tests.helpers.models import all_outputs

pytestmark = pytest.mark.compiles


IMAGES = SMALL / "images"


# Runs a script where this package cannot be imported.
ALONE = """
import runpy, sys
sys.modules["dpt_jax"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.process
def test_a_program_needs_nothing_of_this_package(trained, files, tmp_path):
    served = tmp_path / "served"
    done = in_process("convert", "serve", trained, served)
    for name in ("classifier.jax", "classifier.json", "classify.py"):
        assert f"wrote {served / name}" in done.stdout
    exported = jax.export.deserialize(bytearray((served / "classifier.jax").read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert str(exported.in_avals[0]) == "uint8[b,32,32,3]"
    predictor = dpt_jax.load(trained)
    about = json.loads((served / "classifier.json").read_text())
    assert (about["classnames"], about["image_size"]) == (list(predictor.classnames), 32)
    # The example: a file that is not square too, since it has a transform of its own.
    # It is from a phone that was held upright. Another has 16 bits per pixel.
    deep = np.random.default_rng(1).integers(0, 65536, (40, 40)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    wide = np.random.default_rng(0).integers(0, 256, (50, 90, 3), np.uint8)
    lying = Image.Exif()
    lying[0x0112] = 6
    Image.fromarray(wide).save(tmp_path / "wide.png", exif=lying)
    both = [str(tmp_path / "wide.png"), str(tmp_path / "deep.png"), files[0]]
    done = command("-c", ALONE, str(served / "classify.py"), *both, cwd=tmp_path, PYTHONPATH="")
    for line, own in zip(done.stdout.splitlines(), predictor.predict_proba(both), strict=True):
        best = [f"{predictor.classnames[c]} {100 * own[c]:.1f} %" for c in np.argsort(-own)[:3]]
        assert line.split("  ")[1:] == best


@pytest.mark.slow
def test_onnx(trained, files, tmp_path):
    """Any number of images, answered as by predict; the metadata is in the file."""
    file = tmp_path / "digits.onnx"
    done = in_process("convert", "onnx", trained, file)
    assert "Traceback" not in done.stderr
    predictor = dpt_jax.load(trained)
    images = all_outputs(predictor, files)[0]
    session = onnxruntime.InferenceSession(file)
    for some in (images, images[:1]):
        (answers,) = session.run(None, {"images": some})
        np.testing.assert_allclose(answers, predictor.predict_proba(files)[: len(some)], atol=1e-4)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classnames"]) == list(predictor.classnames)
    assert about["image_size"] == "32"


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_as_onnx(method, clip, clip_dir, tmp_path):
    """Untrained; CoCoOp's texts depend on the image, which is refused."""
    depths = {f"{s}__depth": 2 for s in ("text_prompt", "visual_prompt")
              if method_config(method, "folder")[s].depth > 1}  # fmt: skip
    config = small_config(clip_dir, importlib.import_module(f"configs.{method}"), **depths)
    experiment = setup.prepare(config, clip)
    predictor = Predictor(experiment, Saved(0, initial_prompts(experiment), {}), 4)
    if experiment.model.config.conditioned:
        refused(method, program.write_onnx, predictor, tmp_path / "a.onnx")
        return
    program.write_onnx(predictor, tmp_path / "a.onnx")
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    (answers,) = onnxruntime.InferenceSession(tmp_path / "a.onnx").run(None, {"images": images})
    np.testing.assert_allclose(answers, predictor.predict_proba(images), atol=1e-4)
