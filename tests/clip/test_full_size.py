"""ViT-B/32 and ViT-B/16 at full size against transformers' CLIPModel, on random weights."""

import jax
import numpy as np
import pytest
from etils import epath

from dpt_jax.clip.files import params_of
from dpt_jax.clip.model import CLIP, normalize
from dpt_jax.clip.packing import pack_one_a_row
from tests.golden.make_clip_features import MODELS, SEED, inputs
from tests.helpers import make_clip
from tests.helpers.golden import DATA, relative_error

pytestmark = pytest.mark.compiles


def packed(texts):
    """Whole texts, one per row."""
    own = [[(int(token), -1) for token in tokens] for tokens in texts]
    return pack_one_a_row(own, len(own), max(map(len, own)) - 1)


@pytest.mark.parametrize(
    "name", ["clip_vit_b32", pytest.param("clip_vit_b16", marks=pytest.mark.slow)]
)
def test_features_and_logits(name):
    golden, (images, texts) = np.load(DATA / f"{name}.npz"), inputs()
    config = make_clip.config_of(**MODELS[name])
    params = params_of(make_clip.openai(SEED, **MODELS[name]), config, epath.Path(name))
    image, text = jax.jit(CLIP(config).apply)({"params": params}, images, packed(texts))
    assert relative_error(image, golden["image_features"]) < 1e-4
    assert relative_error(text, golden["text_features"]) < 1e-4
    logits = np.exp(params["logit_scale"]) * normalize(image) @ normalize(text).T
    assert relative_error(logits, golden["logits"]) < 1e-4
