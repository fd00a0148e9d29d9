"""ViT-B/32 and ViT-B/16 at full size against transformers' CLIPModel, on random weights."""

import jax
import numpy as np
import pytest
from etils import epath

from dpt_jax.clip.config import CLIPConfig, TransformerConfig
from dpt_jax.clip.model import CLIP, normalize
from dpt_jax.clip.names import from_transformers
from dpt_jax.clip.text import TextLayout
from tests.golden.make_clip_features import MODELS, inputs, weights
from tests.helpers.golden import DATA, relative_error

pytestmark = pytest.mark.compiles


def layout_of(texts):
    """Whole texts but for the start-of-text token, a row each."""
    own = np.zeros((len(texts), max(map(len, texts)) - 1), np.int32)
    text, position = np.full_like(own, -1), np.zeros_like(own)
    for c, tokens in enumerate(texts):
        length = len(tokens) - 1
        own[c, :length], text[c, :length], position[c, :length] = (
            tokens[1:],
            c,
            range(1, length + 1),
        )
    ends = np.array([[len(tokens) - 2] for tokens in texts], np.int32)
    start = np.array([texts[0][0]], np.int32), np.array([-1], np.int32)
    return TextLayout(
        *start,
        own,
        np.full_like(own, -1),
        text,
        position,
        ends,
        np.arange(len(texts), dtype=np.int32),
    )


@pytest.mark.parametrize("name", MODELS)
def test_features_and_logits(name):
    sizes, golden, (images, texts) = MODELS[name], np.load(DATA / f"{name}.npz"), inputs()
    towers = [TransformerConfig(sizes[w], 12, sizes[w] // 64, 4 * sizes[w]) for w in ("vw", "tw")]
    config = CLIPConfig(sizes["embed"], sizes["res"], sizes["patch"], *towers)
    params = from_transformers(weights(sizes), config, epath.Path(name))
    image, text = jax.jit(CLIP(config).apply)({"params": params}, images, layout_of(texts))
    assert relative_error(image, golden["image_features"]) < 1e-4
    assert relative_error(text, golden["text_features"]) < 1e-4
    logits = np.exp(params["logit_scale"]) * normalize(image) @ normalize(text).T
    assert relative_error(logits, golden["logits"]) < 1e-4
