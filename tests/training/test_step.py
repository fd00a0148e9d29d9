"""The gradient of a step, with every part that a method may have switched on at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpt_jax import distributed
from dpt_jax.clip.packing import pack
from dpt_jax.model import PromptedCLIP, Texts
from dpt_jax.prompts import L1, Consistency, PromptConfig, Weights
from dpt_jax.prompts.text import prompted_texts
from dpt_jax.training.step import StepConfig, accumulate_gradients
from tests.helpers.golden import assert_close_in_norm
from tests.helpers.models import prompt_shapes
from tests.helpers.plain_towers import normal, random_like

NAMES = ["airplane", "sea_horse", "a rather long name"]
# A context for each image, visual tokens that are computed from it and stay up to the layer of the
# class-aware prompts, and losses that regularise all of them towards frozen CLIP.
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
    first_layer=3,
    consistency=Consistency(5.0, L1, 3.0, 2.0),
    # Dropout with a mask per image or text; some layers learn nothing.
    weights=Weights("lora", 2, 1.0, "qkvo", 0.5, (1, 0), (2, 2)),
)


@pytest.mark.compiles
@pytest.mark.parametrize(
    ("remat", "microbatch", "devices"),
    [("blocks", 1, 2), pytest.param("matmuls", 2, 2, marks=pytest.mark.slow)],
)
def test_neither_what_is_kept_nor_parts_nor_devices_change_a_gradient(
    tiny_clip, remat, microbatch, devices
):
    """The gradient of every part, against all images at once without remat."""
    prompts = random_like(
        prompt_shapes(PromptedCLIP(tiny_clip.config, EVERYTHING)), seed=7, scale=0.1
    )
    expected = gradient(tiny_clip, prompts, "none", microbatch=0, on=1)
    found = gradient(tiny_clip, prompts, remat, microbatch, devices)
    assert_close_in_norm(found, expected, 1e-4)


def gradient(clip, prompts, remat, microbatch, on):
    """The gradient of a step under guidance, on so many simulated devices."""
    model = PromptedCLIP(clip.config, EVERYTHING, remat=remat)
    # A text tower with dropout shares no prefix between texts.
    packed = pack(prompted_texts(NAMES, clip.tokenizer, EVERYTHING.text_length), share=False)
    size, embed = clip.config.image_size, clip.config.embed_dim
    texts, held = normal(1, 2, len(NAMES), embed)
    batch = {
        "image": normal(2, on, 4 // on, size, size, 3),
        "index": np.arange(4).reshape(on, -1),
        "label": np.array([0, 1, 2, 1]).reshape(on, -1),
        # The last one is padding.
        "weight": np.array([1.0, 1.0, 1.0, 0.0], np.float32).reshape(on, -1),
    }

    def step(frozen, prompts, batch):
        guided, key, config = jnp.array(True), jax.random.key(3), StepConfig(0.3, microbatch)
        own, _ = accumulate_gradients(model, config, prompts, *frozen, batch, guided, key)
        return jax.lax.psum(own, distributed.AXIS)

    together = jax.vmap(step, (None, None, 0), axis_name=distributed.AXIS)
    found = jax.jit(together)((clip.params, Texts(packed, texts, held)), prompts, batch)
    return jax.tree.map(lambda x: np.asarray(x[0]), found)
