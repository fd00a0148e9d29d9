"""The pixels that a model gets are as its own files specify."""

import dataclasses
import json
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image

from dpt_jax.clip.config import CLIP_PREPROCESSING, Preprocessing, processor_to_dict, read_processor
from tests.helpers.commands import refused

SIZE = 32
OWN = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bilinear", "squash")


@pytest.mark.parametrize("size", [(20000, 1), (1, 60000)])
def test_thin_image_takes_the_memory_of_its_square(size):
    image = Image.new("RGB", size, (200, 10, 10))
    tracemalloc.start()
    pixels = CLIP_PREPROCESSING.transform(image, 224)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (pixels == (200, 10, 10)).all()
    assert pixels.shape == (224, 224, 3)
    assert peak < 50 * pixels.nbytes


def test_mean_and_deviation_are_the_models():
    images = np.full((1, 2, 2, 3), 255, np.uint8)
    found = OWN.normalize(jnp.asarray(images))[0, 0, 0]
    np.testing.assert_allclose(found, (2.5, 2.0, 1.75), rtol=1e-6)


def processor(folder, name="preprocessor_config.json", **change):
    raw = {**processor_to_dict(CLIP_PREPROCESSING, SIZE), **change}
    whole = raw if name.startswith("pre") else {"image_processor": raw}
    (folder / name).write_text(json.dumps(whole))
    return read_processor(epath.Path(folder), SIZE)


@pytest.mark.parametrize("own", [OWN, CLIP_PREPROCESSING])
def test_processor_there_and_back(tmp_path, own):
    for kernel in Image.Resampling:
        own = dataclasses.replace(own, interpolation=kernel.name.lower())
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor_to_dict(own, SIZE)))
        assert read_processor(epath.Path(tmp_path), SIZE) == own


def test_as_transformers_5_and_the_first_version_write_it(tmp_path):
    assert read_processor(epath.Path(tmp_path), SIZE) == CLIP_PREPROCESSING
    mean = [0.1, 0.2, 0.3]
    assert processor(tmp_path, "processor_config.json", image_mean=mean).mean == tuple(mean)
    (tmp_path / "processor_config.json").unlink()
    old = {"size": SIZE, "crop_size": SIZE, "resample": 2, "feature_extractor_type": None}
    assert processor(tmp_path, **old).interpolation == "bilinear"
    square = {"size": {"height": SIZE, "width": SIZE}, "do_center_crop": False, "crop_size": 224}
    own = processor(tmp_path, **square, image_mean=0.5)
    assert (own.resize, own.mean) == ("squash", (0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image_processor_type", "SiglipImageProcessor"),
        ("do_center_crop", False),
        ("resample", 9),
        ("rescale_factor", 1 / 127.5),
        ("size", {"height": SIZE, "width": 2 * SIZE}),
        ("image_mean", [0.5, None, 0.5]),
        ("image_std", [0.5, 0, 0.5]),
    ],
)
def test_processor_that_is_not_supported_is_named(tmp_path, key, value):
    said = value if key == "image_processor_type" else key.removeprefix("image_")
    refused(rf"preprocessor_config\.json.*{said}", processor, tmp_path, **{key: value})
