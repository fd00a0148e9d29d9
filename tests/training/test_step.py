"""The gradient of a step, with every part that a method may have switched on at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpt_jax import distributed
from dpt_jax.clip.packing import pack
from dpt_jax.model import PromptedCLIP, init_prompts
from dpt_jax.prompts.config import L1, Consistency, PromptConfig, Weights
from dpt_jax.prompts.text import prompted_texts
from dpt_jax.training.setup import Frozen
from dpt_jax.training.step import StepConfig, accumulate_gradients

NAMES = ["airplane", "sea_horse", "a rather long name"]
# A context of each image, visual tokens that are made of it and carry on into the layer of the
# class-aware prompts, and losses that hold all of them to plain CLIP.
EVERYTHING = PromptConfig(
    len(NAMES),
    text_length=3,
    text_depth=2,
    conditioned=True,
    visual_length=3,
    visual_depth=2,
    ln_pre=True,
    coupled=True,
    top_k=2,
    first_layer=4,
    consistency=Consistency(5.0, L1, 3.0, 2.0),
)
# Dropout, whose masks belong to an image or a text, in layers of which some learn nothing.
WEIGHTS = PromptConfig(
    len(NAMES), visual_length=3, weights=Weights("lora", 2, 1.0, "qkvo", 0.5, (1, 0), (2, 3))
)


@pytest.mark.compiles
@pytest.mark.parametrize(
    ("config", "case"),
    # What is kept for the gradient, images of a part, devices.
    [
        (EVERYTHING, ("matmuls", 2, 2)),
        (WEIGHTS, ("blocks", 1, 2)),
        pytest.param(EVERYTHING, ("blocks", 1, 2), marks=pytest.mark.slow),
        pytest.param(WEIGHTS, ("matmuls", 2, 2), marks=pytest.mark.slow),
    ],
)
def test_neither_what_is_kept_nor_parts_nor_devices_change_a_gradient(clip, config, case):
    """Of every part, against all images at once with everything saved."""
    model = PromptedCLIP(clip.config, config)
    init = jax.jit(lambda key: init_prompts(model, key))
    # Some parts begin with zeros.
    prompts = jax.tree.map(
        lambda x: 3 * x + 0.01 * jnp.sin(jnp.arange(x.size)).reshape(x.shape),
        init(jax.random.key(7)),
    )
    expected = gradient(clip, config, prompts, "none", microbatch=0, on=1)
    errors = jax.tree.map(error_in_norm, gradient(clip, config, prompts, *case), expected)
    assert max(jax.tree.leaves(errors)) < 1e-4, errors


def error_in_norm(found, expected):
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def gradient(clip, config, prompts, remat, microbatch, on):
    """The gradient of a step under guidance, on so many simulated devices."""
    model = PromptedCLIP(clip.config, config, remat=remat)
    texts = prompted_texts(NAMES, clip.tokenizer, config.text_length)
    packed = pack(texts, share=config is not WEIGHTS)
    texts, held = jax.random.normal(jax.random.key(1), (2, len(NAMES), clip.config.embed_dim))
    batch = {
        "image": jax.random.normal(jax.random.key(2), (on, 4 // on, 32, 32, 3)),
        "index": jnp.arange(4).reshape(on, -1),
        "label": jnp.array([0, 1, 2, 1]).reshape(on, -1),
        "weight": jnp.array([1.0, 1.0, 1.0, 0.0]).reshape(on, -1),  # the last one is padding
    }

    def step(frozen, prompts, batch):
        own, _ = accumulate_gradients(
            model,
            StepConfig(0.3, microbatch),
            prompts,
            frozen,
            batch,
            jnp.array(True),
            jax.random.key(3) if config is WEIGHTS else None,
        )
        return jax.lax.psum(own, distributed.AXIS)

    together = jax.vmap(step, (None, None, 0), axis_name=distributed.AXIS)
    found = jax.jit(together)(Frozen(clip.params, packed, texts, held), prompts, batch)
    return jax.tree.map(lambda x: np.asarray(x[0]), found)
