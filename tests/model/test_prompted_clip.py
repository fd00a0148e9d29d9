"""The prompted model against the towers written out, its gradients and its precision."""

import functools

import jax
import numpy as np
import pytest

from dpt_jax.model import PromptedCLIP
from dpt_jax.prompts.config import PromptConfig
from tests.helpers.models import apply, frozen_features, packed_prompts
from tests.helpers.plain_towers import (
    NAMES,
    normal,
    plain_prompted_tower,
    random_prompts,
)

pytestmark = pytest.mark.compiles


@functools.partial(jax.jit, static_argnums=0)
def encode(model, clip, prompts, packed, frozen):
    return apply(model, clip, prompts, packed, frozen, method="texts")


def forward(model, clip, prompts, images):
    """Outputs and texts of a prompted model.

    The texts know nothing of the image tower's prompts, so that models that differ in these share
    what is compiled.
    """
    own = PromptConfig(len(NAMES), 4, text_depth=model.config.text_depth)
    texts = encode(
        PromptedCLIP(clip.config, own, model.dtype),
        clip.params,
        {"text": prompts["text"]},
        packed_prompts(NAMES, clip.tokenizer, 4),
        frozen_features(model, clip.params, NAMES, clip.tokenizer),
    )
    run = jax.jit(functools.partial(apply, model))
    return run(clip.params, prompts, images, texts), jax.tree.map(np.asarray, texts)


@pytest.mark.parametrize(
    ("visual_length", "depth", "top_k", "first_layer", "coupled"),
    [
        *((2, 0, 9, 2, False), (4, 0, 3, 1, False), (0, 0, 3, 3, False)),
        *((3, 1, 0, 0, False), (3, 2, 2, 4, False), (4, 0, 2, 3, True)),
    ],
)
def test_prompted_vision_tower(clip, visual_length, depth, top_k, first_layer, coupled):
    """VPT and CAVPT from any first layer on, scanned and as memory: as the written-out tower.

    So are tokens that carry on, alone and beside class prompts, and those made of the context.
    """
    config = PromptConfig(
        len(NAMES),
        4,
        visual_length=visual_length,
        visual_depth=depth,
        ln_pre=depth > 0,
        text_depth=2 if coupled else 1,
        coupled=coupled,
        top_k=top_k,
        first_layer=first_layer,
    )
    model = PromptedCLIP(clip.config, config)
    prompts, images = random_prompts(model, seed=7), normal(8, 3, 32, 32, 3)
    outputs, texts = forward(model, clip, prompts, images)
    plain = plain_prompted_tower(clip, model, prompts, images, texts)
    logits, idx, features, attention, of_classes = plain
    np.testing.assert_allclose(outputs.logits, logits, rtol=1e-4, atol=2e-3)
    np.testing.assert_allclose(outputs.features, features, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(outputs.attention, attention, rtol=1e-3, atol=1e-5)
    if top_k:
        np.testing.assert_array_equal(outputs.zero_shot.indices, idx)
        np.testing.assert_allclose(outputs.auxiliary_logits, of_classes[0], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(outputs.class_attention, of_classes[1], rtol=1e-3, atol=1e-5)
