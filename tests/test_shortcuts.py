"""Every shortcut of the hot path against the plain computation that it stands for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpt_jax.clip.blocks import Block, attention_weights
from dpt_jax.clip.config import TransformerConfig
from dpt_jax.clip.model import CLIP, normalize
from dpt_jax.clip.rows import take_rows
from dpt_jax.clip.text import causal
from dpt_jax.clip.vision import LayerPrompts
from dpt_jax.data.paper.imagenet import imagenet_classnames
from dpt_jax.methods import PromptConfig
from dpt_jax.model import PromptedCLIP
from dpt_jax.prompts import text
from dpt_jax.prompts.cavpt import ClassAwarePrompt
from dpt_jax.prompts.text import plain_layout, prompt_layout
from tests.helpers.commands import command

pytestmark = pytest.mark.compiles

NAMES = ["airplane", "sea_horse", "water lilly", "a rather long name", "dog"]
CONFIG = TransformerConfig(width=64, layers=1, heads=2, mlp_width=128)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def normal(seed, *shape, scale=1.0):
    return scale * jax.random.normal(jax.random.key(seed), shape)


@pytest.fixture(scope="module")
def block():
    module = Block(CONFIG)
    params = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 1, 64)))
    params = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params
    )
    return jax.jit(
        lambda *args, **kwargs: module.apply(params, *args, **kwargs), static_argnames="attention"
    )


def triangle(length):
    return causal(jnp.zeros((1, length), jnp.int32))


@pytest.mark.parametrize("shared", [True, False])
def test_memory_is_appended_tokens_whose_outputs_are_dropped(block, shared):
    x, memory = normal(1, 3, 7, 64), normal(2, 1 if shared else 3, 4, 64)
    appended = jnp.concatenate([x, jnp.broadcast_to(memory, (3, 4, 64))], axis=1)
    np.testing.assert_allclose(block(x, memory), block(appended)[:, :7], **CLOSE)


def test_causal_memory_is_a_prefix(block):
    whole = normal(3, 2, 9, 64)
    plain = block(whole, mask=triangle(9))
    np.testing.assert_allclose(
        block(whole[:, 4:], whole[:, :4], mask=triangle(5)), plain[:, 4:], **CLOSE
    )


@pytest.mark.parametrize("masked", [True, False])
def test_only_the_asked_tokens(block, masked):
    x, memory, asked = normal(4, 3, 7, 64), normal(5, 3, 2, 64), jnp.array([[0, 1], [6, 2], [3, 3]])
    mask = triangle(7) if masked else None
    every = block(x, memory, mask=mask)
    some = block(x, memory, mask=mask, query=asked)
    np.testing.assert_allclose(some, every[jnp.arange(3)[:, None], asked], **CLOSE)


def test_texts_in_one_row_do_not_see_each_other(block):
    """Packed rows against a row a text, padding and memory included."""
    x, memory = normal(3, 2, 9, 64), normal(5, 1, 2, 64)
    owners = jnp.array([[0, 0, 0, 1, 1, 2, 2, 2, 2], [3, 3, 4, 4, 4, 4, 4, -1, -1]])
    packed = block(x, memory, mask=causal(owners))
    for row, start, stop in [(0, 0, 3), (0, 3, 5), (0, 5, 9), (1, 0, 2), (1, 2, 7)]:
        alone = block(x[row : row + 1, start:stop], memory, mask=triangle(stop - start))
        np.testing.assert_allclose(packed[row, start:stop], alone[0], **CLOSE)


@pytest.mark.parametrize("masked", [True, False])
def test_attention_that_is_shown_is_the_one_that_is_computed(block, masked):
    """The weights, applied to values, give the fused result; asking for them changes nothing."""
    query, key, value = normal(6, 2, 5, 2, 32), normal(7, 2, 5, 2, 32), normal(8, 2, 5, 2, 32)
    mask = triangle(5) if masked else None
    fused = jax.nn.dot_product_attention(
        query, key, value, mask=None if mask is None else mask[:, None]
    )
    weights = attention_weights(query, key, mask)
    np.testing.assert_allclose(jnp.einsum("bhqk,bkhd->bqhd", weights, value), fused, **CLOSE)
    x, memory = normal(1, 2, 5, 64), normal(2, 1, 3, 64)
    result, shown = block(x, memory, mask=mask, query=jnp.array([[4]]), attention=True)
    np.testing.assert_array_equal(result, block(x, memory, mask=mask, query=jnp.array([[4]])))
    assert shown.shape == (2, 2, 1, 8)
    np.testing.assert_allclose(shown.sum(-1), 1, rtol=1e-5)


def layer_norm(x, p):
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5) * p[
        "scale"
    ] + p["bias"]


def layer_of(tree, layer):
    return jax.tree.map(lambda w: w[layer], tree)


def plain_text_features(clip, rows, context):
    """The text tower without any shortcut: whole sequences, unscanned blocks, every position.

    rows: a text each as (token id, context row or -1); context: (depth, C, n, D_t).
    """
    length = max(map(len, rows))
    padded = np.array([row + [(0, -1)] * (length - len(row)) for row in rows])
    ids, places = padded[..., 0], padded[..., 1]
    ends = np.array([len(row) - 1 for row in rows])

    @jax.jit
    def features(weights, context):
        block = Block(clip.config.text)
        each = jnp.arange(len(rows))
        placed = [own[each[:, None], places] for own in context]
        inside = (places >= 0)[..., None]
        x = jnp.where(inside, placed[0], jnp.asarray(weights["token_embedding"])[ids])
        x = x + weights["position_embedding"][:length]
        for layer in range(clip.config.text.layers):
            if 0 < layer < len(placed):
                x = jnp.where(inside, placed[layer], x)
            own = layer_of(weights["transformer"]["blocks"], layer)
            x = block.apply({"params": own}, x, mask=triangle(length))
        return layer_norm(x[each, ends], weights["ln_final"]) @ weights["projection"]

    return features(clip.params["text"], context)


def plain_rows(clip, names, length, position):
    """The sequences of docs/method.md, written out."""
    rows = []
    for name in names:
        name = name.replace("_", " ")
        own, dot = clip.tokenizer.encode(name), clip.tokenizer.encode(".")
        context, own = [(0, i) for i in range(length)], [(t, -1) for t in own]
        half = length // 2
        body = {
            "end": context + own,
            "middle": context[:half] + own + context[half:],
            "front": own + context,
        }[position]
        rows.append(
            [(clip.tokenizer.start, -1), *body, *((t, -1) for t in dot), (clip.tokenizer.end, -1)]
        )
    return rows


@pytest.mark.parametrize(("depth", "row"), [(1, 64), (2, 12), (3, 30)])
@pytest.mark.parametrize("class_specific", [False, True])
@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_text_tower(clip, position, class_specific, depth, row, monkeypatch):
    """The shared beginning encoded once, own tokens packed in rows: as the written-out tower."""
    monkeypatch.setattr(text, "ROW", row)
    length, width = 5, clip.config.text.width
    own = (len(NAMES),) if class_specific else ()
    context = normal(6, depth, *own, length, width, scale=0.3)
    each = (
        context
        if class_specific
        else jnp.broadcast_to(context[:, None], (depth, len(NAMES), length, width))
    )
    layout = prompt_layout(NAMES, clip.tokenizer, length, position, class_specific)
    model = CLIP(clip.config)
    actual = jax.jit(
        lambda p: model.apply({"params": p}, method=lambda m: m.text(layout, context))
    )(clip.params)
    expected = plain_text_features(clip, plain_rows(clip, NAMES, length, position), each)
    np.testing.assert_allclose(actual, expected, **CLOSE)


def test_prefix_is_as_long_as_it_can_be(clip):
    """The whole shared context is encoded once, and only where it is the same for all."""
    assert len(prompt_layout(NAMES, clip.tokenizer, 16, "end").prefix_tokens) == 17
    assert len(prompt_layout(NAMES, clip.tokenizer, 16, "middle").prefix_tokens) == 9
    assert (
        len(prompt_layout(NAMES, clip.tokenizer, 16, "end", class_specific=True).prefix_tokens) == 1
    )
    assert (
        len(plain_layout([f"a photo of a {n}." for n in NAMES], clip.tokenizer).prefix_tokens) == 5
    )
    assert prompt_layout(["dog"], clip.tokenizer, 4).tokens.shape == (1, 1)


@settings(deadline=None)
@given(st.lists(st.integers(1, 70), min_size=1, max_size=200))
def test_packing_keeps_every_text_once_in_rows_with_little_padding(lengths):
    rows = text.pack(lengths)
    assert sorted(c for row in rows for c in row) == list(range(len(lengths)))
    widest = max(sum(lengths[c] for c in row) for row in rows)
    assert widest <= max(text.ROW, *lengths)
    # Two rows that are half empty would have been one.
    assert sum(2 * sum(lengths[c] for c in row) <= max(text.ROW, *lengths) for row in rows) <= 1


def test_a_thousand_names_cost_what_their_tokens_cost(clip):
    """Few places of ImageNet's packed names are padding; of the published 77 a class, most are."""
    layout = prompt_layout(imagenet_classnames(), clip.tokenizer, 16)
    assert (layout.text >= 0).mean() > 0.95
    assert layout.tokens.size < 0.1 * 77 * len(layout.order)


SHARED = """
import jax, jax.numpy as jnp, numpy as np, sys
from dpt_jax.runtime import devices
from dpt_jax.clip.pretrained import load_clip
from dpt_jax.methods import PromptConfig
from dpt_jax.model import PromptedCLIP
from dpt_jax.prompts import text
text.ROW = 12
clip = load_clip(sys.argv[1])
colours, things = ("red", "green", "dark blue"), ("fish", "old car", "dog")
names = [f"{colour} {thing}" for colour in colours for thing in things]
names += ["boat", "a long boat"]
model = PromptedCLIP(clip.config, PromptConfig(len(names), 4))
layout = text.prompt_layout(names, clip.tokenizer, 4)
prompts = jax.jit(model.init)(jax.random.key(0))
weight = jax.random.normal(jax.random.key(1), (4, len(names), clip.config.embed_dim))

def run(axis, weight, prompts):
    def features(prompts):
        params = {"clip": clip.params, "prompts": prompts}
        return model.encode_texts(params, layout, jnp.ones(weight.shape), axis).learned
    found, pull = jax.vjp(features, prompts)
    gradient = pull(weight)[0]["text"]["context"]
    return found, jax.lax.psum(gradient, axis) if axis else gradient

shared = jax.pmap(lambda w: run("batch", w, prompts), "batch")(weight)
alone = jax.jit(lambda w: run(None, w, prompts))(weight.sum(0))
assert jax.device_count() == 4 and layout.tokens.shape[0] % 4, layout.tokens.shape
for name, found, expected in zip(("features", "gradient"), shared, alone):
    for device in found:
        np.testing.assert_allclose(device, expected, rtol=1e-4, atol=1e-5, err_msg=name)
"""


def test_texts_shared_by_devices(clip_dir):
    """Rows that four devices cannot share equally: features and gradients of one device."""
    command("-c", SHARED, str(clip_dir), devices=4, PYTHONPATH=".")


def plain_prompted_tower(clip, model, params, images, texts):
    """The prompted image tower as the papers write it: prompts appended, and their outputs dropped
    but those of the last of `visual_depth` layers.
    """
    config, weights, prompts = model.prompts, params["clip"]["vision"], params["prompts"]
    module, block = CLIP(clip.config), Block(clip.config.vision)
    x = module.apply({"params": params["clip"]}, method=lambda m: m.vision.embed(images))
    z = normalize(
        module.apply({"params": params["clip"]}, method=lambda m: m.vision(images).features)
    )
    idx = jnp.argsort(-(z @ texts.frozen.T), axis=1)[:, : min(config.top_k, len(texts.frozen))]
    auxiliary, made_of, tokens = [], [], x.shape[1]
    for layer in range(clip.config.vision.layers):
        if layer < model.visual_layers:
            added = (
                model.visual_tokens(prompts)[layer]
                if config.visual_length and layer < model.visual_depth
                else jnp.zeros((0, x.shape[-1]))
            )
            if config.ln_pre and layer == 0:
                added = layer_norm(added, weights["ln_pre"])
            added = jnp.broadcast_to(added, (len(x), *added.shape))
            if layer == config.visual_depth - 1:
                tokens += config.visual_length
        else:
            own = layer_of(prompts["cavpt"], layer - model.visual_layers)
            c = (
                texts.learned[idx] @ own["class_projection"]["kernel"]
                + own["class_projection"]["bias"]
            )
            shared = jnp.broadcast_to(own["global_tokens"], (len(x), *own["global_tokens"].shape))
            m = jnp.concatenate([x, shared], axis=1)
            scores = (
                (c @ own["query"]["kernel"])
                @ (m @ own["key"]["kernel"]).transpose(0, 2, 1)
                / np.sqrt(32)
            )
            made_of.append(jax.nn.softmax(scores))
            o = made_of[-1] @ m @ own["value"]["kernel"]
            auxiliary.append(layer_norm(o, own["ln_classifier"]) @ own["classifier"]["kernel"])
            added = layer_norm(o + c, own["ln_prompt"])
        own = layer_of(weights["transformer"]["blocks"], layer)
        x, attention = block.apply(
            {"params": own}, jnp.concatenate([x, added], axis=1), attention=True
        )
        x = x[:, :tokens]
    features = normalize(layer_norm(x[:, 0], weights["ln_post"]) @ weights["projection"])
    logits = jnp.exp(params["clip"]["logit_scale"]) * features @ normalize(texts.learned).T
    return (
        logits,
        idx,
        features,
        attention[:, :, 0],
        [jnp.stack(a, 1) for a in (auxiliary, made_of) if a],
    )


def forward(model, clip, params, images):
    """Outputs and texts of a prompted model, jitted."""
    plain, layout = plain_layout(NAMES, clip.tokenizer), prompt_layout(NAMES, clip.tokenizer, 4)

    @jax.jit
    def run(params):
        texts = model.encode_texts(params, layout, model.encode_plain(params, plain))
        return model(params, images, texts), texts

    return run(params)


@pytest.mark.parametrize(
    ("visual_length", "depth", "top_k", "first_layer", "coupled"),
    [
        *((3, 0, 0, 0, False), (3, 0, 2, 4, False), (3, 0, 2, 3, False), (2, 0, 9, 2, False)),
        *((4, 0, 3, 1, False), (0, 0, 3, 3, False), (3, 1, 0, 0, False), (3, 2, 2, 4, False)),
        (4, 0, 2, 3, True),
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
    prompts = jax.tree.map(lambda x: x * 5, jax.jit(model.init)(jax.random.key(7)))
    params, images = {"clip": clip.params, "prompts": prompts}, normal(8, 3, 32, 32, 3)
    outputs, texts = forward(model, clip, params, images)
    plain = jax.jit(lambda params, texts: plain_prompted_tower(clip, model, params, images, texts))
    logits, idx, features, attention, of_classes = plain(params, texts)
    np.testing.assert_allclose(outputs.logits, logits, rtol=1e-4, atol=2e-3)
    np.testing.assert_allclose(outputs.features, features, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(outputs.attention, attention, rtol=1e-3, atol=1e-5)
    if top_k:
        np.testing.assert_array_equal(outputs.indices, idx)
        np.testing.assert_allclose(outputs.auxiliary_logits, of_classes[0], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(outputs.class_attention, of_classes[1], rtol=1e-3, atol=1e-5)


def test_rows_that_are_taken_several_times_have_a_gradient_of_one_order():
    """The value and the gradient of an index, without the additions in no fixed order."""
    table, numbers = normal(14, 5, 8), jnp.array([[0, 3, 3], [3, 1, 0]])
    weight = normal(15, 2, 3, 8)

    def gradient(take):
        return jax.grad(lambda table: (take(table, numbers) * weight).sum())

    def plain(table, numbers):
        return table[numbers]

    np.testing.assert_array_equal(take_rows(table, numbers), plain(table, numbers))
    np.testing.assert_allclose(gradient(take_rows)(table), gradient(plain)(table), **CLOSE)
    assert "scatter" in str(jax.make_jaxpr(gradient(plain))(table))
    assert "scatter" not in str(jax.make_jaxpr(gradient(take_rows))(table))


def test_cavpt_sends_no_gradient_into_the_image_but_some_into_the_text():
    module = ClassAwarePrompt(classes=4)
    x, t = normal(9, 2, 5, 64), normal(10, 2, 3, 32)
    params = module.init(jax.random.key(0), x, t)

    def of_all(x, t):
        return sum(y.sum() ** 2 for y in jax.tree.leaves(module.apply(params, x, t)))

    to_x, to_t = jax.grad(of_all, argnums=(0, 1))(x, t)
    assert not np.any(to_x)
    assert np.all(np.isfinite(to_t))
    assert np.any(to_t)


def test_layer_prompts_cover_any_split(clip):
    """Prompts given for some layers leave the layers behind them as they are."""
    images = normal(11, 2, 32, 32, 3)
    model = CLIP(clip.config)

    def run(prompts):
        return jax.jit(
            lambda p: model.apply(
                {"params": p}, method=lambda m: m.vision(images, prompts).features
            )
        )(clip.params)

    def silent(layers):
        return LayerPrompts(layers, lambda _, x: (None, None))

    np.testing.assert_allclose(run([silent(1), silent(2)]), run([]), **CLOSE)


def test_bfloat16_stays_near_float32(clip):
    config = PromptConfig(len(NAMES), 4, visual_length=3, top_k=3, first_layer=4)
    images, logits = normal(12, 4, 32, 32, 3), []
    for dtype in (jnp.float32, jnp.bfloat16):
        model = PromptedCLIP(clip.config, config, dtype)
        params = {"clip": clip.params, "prompts": jax.jit(model.init)(jax.random.key(1))}
        logits.append(np.asarray(forward(model, clip, params, images)[0].logits))
        assert logits[-1].dtype == np.float32
    # Logits are cosines times 100: 2 is a cosine off by 0.02.
    np.testing.assert_allclose(logits[1], logits[0], atol=2.0)
    assert np.abs(logits[1] - logits[0]).max() > 0
