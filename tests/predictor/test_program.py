"""A classifier as one compiled program."""

import json

import numpy as np
import pytest
from PIL import Image

import dpt_jax
from dpt_jax.data.folder import find_images
from tests.helpers.commands import command, in_process
from tests.helpers.golden import SMALL
from tests.helpers.models import all_outputs

pytestmark = pytest.mark.compiles


IMAGES = SMALL / "images"


# Loads the program where this package cannot be imported.
RUN = """
import json, sys
import jax, numpy as np
sys.modules["dpt_jax"] = None
folder, images = sys.argv[1:]
program = jax.export.deserialize(bytearray(open(f"{folder}/classifier.jax", "rb").read()))
images = np.load(images)
print(json.dumps({"platforms": program.platforms, "input": str(program.in_avals[0]),
                  "all": program.call(images).tolist(),
                  "one": program.call(images[:1]).tolist()}, default=str))
"""


@pytest.mark.process
def test_a_program_needs_nothing_of_this_package(trained, tmp_path):
    served = tmp_path / "served"
    done = in_process("-m", "dpt_jax", "convert", "serve", str(trained), str(served))
    assert all(
        f"wrote {served / name}" in done.stdout
        for name in ("classifier.jax", "classifier.json", "classify.py")
    )
    predictor = dpt_jax.load(trained)
    files = find_images([str(IMAGES / "test")])
    expected = predictor.predict_proba(files)
    np.save(tmp_path / "images.npy", all_outputs(predictor, files)[0])
    done = command(
        "-c", RUN, str(served), str(tmp_path / "images.npy"), cwd=tmp_path, PYTHONPATH=""
    )
    told = json.loads(done.stdout)
    assert told["platforms"] == ["cpu", "cuda", "tpu"]
    assert told["input"] == "uint8[b,32,32,3]"
    np.testing.assert_allclose(told["all"], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(told["one"], expected[:1], rtol=1e-4, atol=1e-6)
    about = json.loads((served / "classifier.json").read_text())
    assert (about["classnames"], about["image_size"]) == (list(predictor.classnames), 32)
    # The example: a file that is not square too, since it has a transform of its own.
    # It is of a phone that was held upright. And one of 16 bits a pixel.
    deep = np.random.default_rng(1).integers(0, 65536, (40, 40)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    wide = np.random.default_rng(0).integers(0, 256, (50, 90, 3), np.uint8)
    lying = Image.Exif()
    lying[0x0112] = 6
    Image.fromarray(wide).save(tmp_path / "wide.png", exif=lying)
    both = [str(tmp_path / "wide.png"), str(tmp_path / "deep.png"), files[0]]
    done = command(str(served / "classify.py"), *both, cwd=tmp_path, PYTHONPATH="")
    for line, own in zip(done.stdout.splitlines(), predictor.predict_proba(both), strict=True):
        best = np.argsort(-own)[:3]
        assert line.split("  ")[1:] == [
            f"{predictor.classnames[c]} {100 * own[c]:.1f} %" for c in best
        ]
