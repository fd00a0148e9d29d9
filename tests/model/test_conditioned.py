"""A context that depends on the image: through training, the tools, and beside the other parts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dpt_jax
from configs import cocoop
from dpt_jax.errors import UserError
from dpt_jax.model import PromptedCLIP, init_prompts
from dpt_jax.prompts import meta_net
from dpt_jax.prompts.config import PromptConfig
from dpt_jax.prompts.meta_net import MetaNet
from dpt_jax.training import setup
from tests.helpers.commands import assert_refused, in_process
from tests.helpers.configs import save_run, small_config
from tests.helpers.models import apply, frozen_features, packed_prompts

pytestmark = pytest.mark.compiles

NAMES = ["airplane", "sea_horse", "a rather long name"]


def test_it_is_the_context_of_each_image_under_every_other_part(clip, monkeypatch):
    """DPT with it, an image at a time: as DPT of each image alone with a context of its own.

    All images at a time are in tests/test_family_parity.py.
    """
    monkeypatch.setattr(meta_net, "TOKENS_AT_A_TIME", 1)
    parts = PromptConfig(
        len(NAMES), 4, text_depth=2, visual_length=2, top_k=2, first_layer=4, conditioned=True
    )
    model = PromptedCLIP(clip.config, parts)
    alone = PromptedCLIP(clip.config, dataclasses.replace(parts, conditioned=False))
    prompts = jax.tree.map(
        lambda x: 5 * x, jax.jit(lambda key: init_prompts(model, key))(jax.random.key(1))
    )
    images = jax.random.normal(jax.random.key(2), (3, 32, 32, 3))
    packed = packed_prompts(NAMES, clip.tokenizer, 4)
    frozen = frozen_features(model, clip.params, NAMES, clip.tokenizer)

    def run(model, clip_params, prompts, images):
        texts = apply(model, clip_params, prompts, packed, frozen, method="texts")
        return apply(model, clip_params, prompts, images, texts)

    @jax.jit
    def together(clip_params, prompts):
        return run(model, clip_params, prompts, images)

    @jax.jit
    def one(clip_params, prompts, added, image):
        context = prompts["text"]["context"]
        own = {**prompts, "text": {"context": context.at[0].add(added)}}
        return run(alone, clip_params, own, image[None])

    net = MetaNet(clip.config.embed_dim, clip.config.text.width)
    z = jax.jit(lambda p: apply(model, p, {}, images, method="encode_image"))(clip.params)
    found = together(clip.params, prompts)
    for b, added in enumerate(net.apply({"params": prompts["meta_net"]}, z)):
        expected = one(clip.params, prompts, added, images[b])
        for name in ("logits", "text_logits", "auxiliary_logits", "class_attention"):
            own, theirs = (getattr(x, name) for x in (found, expected))
            np.testing.assert_allclose(own[b], theirs[0], rtol=1e-3, atol=2e-3, err_msg=name)
    # And it does depend on the image.
    assert jnp.abs(found.text_logits[0] / found.text_logits[1] - 1).max() > 1e-2


def test_it_has_no_words_and_no_texts_of_its_own(clip, clip_dir, tmp_path):
    run = save_run(setup.prepare(small_config(clip_dir, cocoop), clip), tmp_path)
    done = in_process("-m", "dpt_jax", "explain", str(run), check=False)
    assert_refused(done, "depends on the image, so it has no fixed words to explain")
    with pytest.raises(UserError, match="a class has no text features of its own"):
        dpt_jax.load(run).encode_text(["dog"])
