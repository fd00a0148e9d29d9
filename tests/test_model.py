"""The model against towers without shortcuts, and a context that depends on the image."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dpt_jax
import dpt_jax.model as dpt_model
from configs import cocoop
from dpt_jax.clip import packing
from dpt_jax.clip.blocks import Block, attention_weights, deterministic_gather
from dpt_jax.clip.config import TransformerConfig
from dpt_jax.clip.model import CLIP
from dpt_jax.data.catalogue import imagenet_classnames
from dpt_jax.model import PromptedCLIP, Texts, init_prompts
from dpt_jax.prompts import PromptConfig
from dpt_jax.prompts.text import MetaNet, prompted_texts
from dpt_jax.training import setup
from dpt_jax.training.setup import warn_of_duplicates
from tests.helpers import plain_towers as plain
from tests.helpers.commands import command_refused, refused
from tests.helpers.configs import small_config
from tests.helpers.models import apply, frozen_features, packed_prompts
from tests.helpers.runs import save_run

pytestmark = pytest.mark.compiles

FEW = plain.NAMES[:3]


@functools.partial(jax.jit, static_argnums=0)
def encode(model, clip, prompts, packed, frozen):
    return apply(model, clip, prompts, Texts(packed, frozen), method="texts")


def forward(model, clip, prompts, images):
    """Outputs and texts of a prompted model. One program encodes the texts of several models."""
    own = PromptConfig(len(plain.NAMES), 4, text_depth=model.config.text_depth)
    texts = encode(
        PromptedCLIP(clip.config, own, model.dtype),
        clip.params,
        {"text": prompts["text"]},
        packed_prompts(plain.NAMES, clip.tokenizer, 4),
        frozen_features(model, clip.params, plain.NAMES, clip.tokenizer),
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
    """VPT, CAVPT from any first layer on, tokens that stay in the sequence, and coupled tokens."""
    visual = {"visual_length": visual_length, "visual_depth": depth, "ln_pre": depth > 0}
    class_aware = {"top_k": top_k, "first_layer": first_layer}
    text_depth = 2 if coupled else 1
    config = PromptConfig(
        len(plain.NAMES), 4, **visual, **class_aware, text_depth=text_depth, coupled=coupled
    )
    model = PromptedCLIP(clip.config, config)
    prompts, images = plain.random_prompts(model, seed=7), plain.normal(8, 3, 32, 32, 3)
    outputs, texts = forward(model, clip, prompts, images)
    written_out = plain.prompted_tower(clip, model, prompts, images, texts)
    logits, idx, features, attention, of_classes = written_out
    np.testing.assert_allclose(outputs.logits, logits, rtol=1e-4, atol=2e-3)
    np.testing.assert_allclose(outputs.features, features, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(outputs.attention, attention, rtol=1e-3, atol=1e-5)
    if top_k:
        np.testing.assert_array_equal(outputs.zero_shot.indices, idx)
        np.testing.assert_allclose(outputs.auxiliary_logits, of_classes[0], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(outputs.class_attention, of_classes[1], rtol=1e-3, atol=1e-5)


def test_a_conditioned_context_with_every_other_part(clip, monkeypatch):
    """DPT with such a context on two images equals DPT on each image with that image's context."""
    parts = PromptConfig(
        len(FEW), 4, text_depth=2, visual_length=2, top_k=2, first_layer=4, conditioned=True
    )
    model = PromptedCLIP(clip.config, parts)
    alone = PromptedCLIP(clip.config, dataclasses.replace(parts, conditioned=False))
    prompts, images = plain.random_prompts(model, seed=1), plain.normal(2, 3, 32, 32, 3)
    packed = packed_prompts(FEW, clip.tokenizer, 4)
    monkeypatch.setattr(dpt_model, "TOKENS_AT_A_TIME", 2 * packed.tokens.size)
    frozen = frozen_features(model, clip.params, FEW, clip.tokenizer)

    def run(model, clip_params, prompts, images):
        texts = apply(model, clip_params, prompts, Texts(packed, frozen), method="texts")
        return apply(model, clip_params, prompts, images, texts)

    run = jax.jit(run, static_argnums=0)
    net = MetaNet(clip.config.embed_dim, clip.config.text.width)
    z = jax.jit(lambda p: apply(model, p, {}, images, method="encode_image"))(clip.params)
    found = run(model, clip.params, prompts, images)
    for b, added in enumerate(net.apply({"params": prompts["meta_net"]}, z)):
        context = jnp.asarray(prompts["text"]["context"]).at[0].add(added)
        own = {**prompts, "text": {"context": context}}
        expected = run(alone, clip.params, own, images[b : b + 1])
        for name in ("logits", "text_logits", "auxiliary_logits", "class_attention"):
            own, theirs = (getattr(x, name) for x in (found, expected))
            np.testing.assert_allclose(own[b], theirs[0], rtol=1e-3, atol=2e-3, err_msg=name)
    # And it does depend on the image.
    assert jnp.abs(found.text_logits[0] / found.text_logits[1] - 1).max() > 1e-2


def test_a_conditioned_context_has_no_words_and_no_texts(clip, clip_dir, tmp_path):
    run = save_run(setup.prepare(small_config(clip_dir, cocoop), clip), tmp_path)
    command_refused("depends on the image, so it has no fixed words to explain", "explain", run)
    refused("a class has no text features of its own", dpt_jax.load(run).encode_text, ["dog"])


@pytest.mark.parametrize(
    ("position", "class_specific", "depth", "row"),
    [
        *(("end", True, 3, 30), ("end", False, 2, 12)),
        *(("middle", False, 1, 64), ("front", False, 3, 30), ("front", True, 2, 12)),
    ],
)
def test_text_tower(clip, position, class_specific, depth, row, monkeypatch):
    """The shared beginning encoded once, own tokens packed in rows: as the written-out tower."""
    monkeypatch.setattr(packing, "ROW_TOKENS", row)
    length, width = 5, clip.config.text.width
    own = (len(plain.NAMES),) if class_specific else ()
    context = jnp.asarray(plain.normal(6, depth, *own, length, width, scale=0.3))
    own_context = context if class_specific else context[:, None]
    each = jnp.broadcast_to(own_context, (depth, len(plain.NAMES), length, width))
    layout = packed_prompts(plain.NAMES, clip.tokenizer, length, position, class_specific)
    model = CLIP(clip.config)
    actual = jax.jit(
        lambda p: model.apply({"params": p}, method=lambda m: m.text(layout, context))
    )(clip.params)
    expected = plain.text_features(clip, plain.rows_of(clip, plain.NAMES, length, position), each)
    np.testing.assert_allclose(actual, expected, **plain.CLOSE)


def test_classes_with_the_same_text_are_found(clip, capsys):
    """CLIP ignores case; with a context of its own, each class has a different text."""
    names = ["A", "b", "a", "sea_horse", "Sea Horse", "ab"]
    for specific in (True, False):
        texts = prompted_texts(names, clip.tokenizer, 2, class_specific=specific)
        warn_of_duplicates(texts, names)
        assert ("'A' and 'a'; 'sea_horse' and" in capsys.readouterr().err) == (not specific)


def test_a_thousand_names_cost_what_their_tokens_cost(clip):
    """Few tokens of ImageNet's packed names are padding, unlike the published 77 per class."""
    layout = packed_prompts(imagenet_classnames(), clip.tokenizer, 16)
    assert (layout.segment_ids >= 0).mean() > 0.95
    assert layout.tokens.size < 0.1 * 77 * len(layout.eot_index)


CONFIG = TransformerConfig(width=64, layers=1, heads=2, mlp_width=128)


@pytest.fixture(scope="module")
def block():
    module = Block(CONFIG)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 1, 64)))
    params = plain.random_like(shapes, seed=0, scale=0.2)
    return jax.jit(
        lambda *args, **kwargs: module.apply(params, *args, **kwargs), static_argnames="method"
    )


@pytest.mark.parametrize("masked", [True, False])
def test_shown_attention_is_the_computed_attention(block, masked):
    """The weights, applied to values, give the fused result."""
    query, key, value = (plain.normal(seed, 2, 5, 2, 32) for seed in (6, 7, 8))
    mask = plain.triangle(5) if masked else None
    fused = jax.jit(jax.nn.dot_product_attention)(
        query, key, value, mask=None if mask is None else mask[:, None]
    )
    weights = jax.jit(attention_weights)(query, key, mask)
    np.testing.assert_allclose(np.einsum("bhqk,bkhd->bqhd", weights, value), fused, **plain.CLOSE)
    x, memory = plain.normal(1, 2, 5, 64), plain.normal(2, 1, 3, 64)
    shown = block(x, memory, mask=mask, query=np.array([[4]]), method="attention")
    assert shown.shape == (2, 2, 1, 8)
    np.testing.assert_allclose(shown.sum(-1), 1, rtol=1e-5)


def test_the_gradient_of_repeated_rows_is_deterministic():
    """As indexing and its gradient, but with sums in a fixed order."""
    table, numbers = jnp.asarray(plain.normal(14, 5, 8)), jnp.array([[0, 3, 3], [3, 1, 0]])
    weight = plain.normal(15, 2, 3, 8)

    def gradient(take):
        return jax.jit(jax.grad(lambda table: (take(table, numbers) * weight).sum()))

    def index(table, numbers):
        return table[numbers]

    np.testing.assert_array_equal(deterministic_gather(table, numbers), index(table, numbers))
    np.testing.assert_allclose(
        gradient(deterministic_gather)(table), gradient(index)(table), **plain.CLOSE
    )
    assert "scatter" in str(jax.make_jaxpr(gradient(index))(table))
    assert "scatter" not in str(jax.make_jaxpr(gradient(deterministic_gather))(table))


def test_prompts_are_float32_if_jax_computes_in_64_bits(clip):
    model = PromptedCLIP(clip.config, PromptConfig(len(FEW), 4, visual_length=2))
    with jax.enable_x64(True):
        shapes = jax.eval_shape(lambda key: init_prompts(model, key), jax.random.key(0))
    assert {x.dtype for x in jax.tree.leaves(shapes)} == {np.dtype(np.float32)}
