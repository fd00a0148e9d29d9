"""The gradient of a step, with every part that a method may have switched on at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpt_jax import distributed
from dpt_jax.clip.blocks import REMAT_POLICIES
from dpt_jax.methods import L1, Consistency, PromptConfig
from dpt_jax.model import PromptedCLIP, init_prompts
from dpt_jax.training.setup import Frozen
from dpt_jax.training.step import StepConfig, accumulate_gradients
from tests.helpers.models import packed_prompts

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


@pytest.mark.compiles
def test_neither_what_is_kept_nor_parts_nor_devices_change_a_gradient(clip):
    """Of every prompt, against all images at once with everything saved."""
    model = PromptedCLIP(clip.config, EVERYTHING)
    init = jax.jit(lambda key: init_prompts(model, key))
    prompts = jax.tree.map(lambda x: 3 * x, init(jax.random.key(7)))
    expected = gradient(clip, prompts, "none", microbatch=0, on=1)
    cases = (("matmuls", 2, 2), ("blocks", 1, 2))
    assert {"none", *(remat for remat, *_ in cases)} == set(REMAT_POLICIES)
    for remat, microbatch, on in cases:
        found = gradient(clip, prompts, remat, microbatch, on)
        errors = jax.tree.map(error_in_norm, found, expected)
        assert max(jax.tree.leaves(errors)) < 1e-4, (remat, errors)


def error_in_norm(found, expected):
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def gradient(clip, prompts, remat, microbatch, on):
    """The gradient of a step under guidance, on so many simulated devices."""
    model = PromptedCLIP(clip.config, EVERYTHING, remat=remat)
    packed = packed_prompts(NAMES, clip.tokenizer, EVERYTHING.text_length)
    texts, held = jax.random.normal(jax.random.key(1), (2, len(NAMES), clip.config.embed_dim))
    batch = {
        "image": jax.random.normal(jax.random.key(2), (on, 4 // on, 32, 32, 3)),
        "label": jnp.array([0, 1, 2, 1]).reshape(on, -1),
        "weight": jnp.array([1.0, 1.0, 1.0, 0.0]).reshape(on, -1),  # the last one is padding
    }

    def step(frozen, prompts, batch):
        config, guided = StepConfig(0.3, microbatch), jnp.array(True)
        own, _ = accumulate_gradients(model, config, prompts, frozen, batch, guided)
        return jax.lax.psum(own, distributed.AXIS)

    together = jax.vmap(step, (None, None, 0), axis_name=distributed.AXIS)
    found = jax.jit(together)(Frozen(clip.params, packed, texts, held), prompts, batch)
    return jax.tree.map(lambda x: np.asarray(x[0]), found)
