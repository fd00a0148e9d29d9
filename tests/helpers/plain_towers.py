"""The towers written out without any shortcut, for the tests of the shortcuts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import softmax

from dpt_jax.clip.blocks import Block
from dpt_jax.clip.model import CLIP, causal_mask
from dpt_jax.model import visual_depth, visual_layers
from tests.helpers.models import apply, prompt_shapes

NAMES = ["airplane", "sea_horse", "water lilly", "a rather long name", "dog"]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def normal(seed, *shape, scale=1.0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def random_like(shapes, seed, scale=0.3):
    """Return a random tree of these shapes, without compiling an initialisation."""
    leaves, structure = jax.tree.flatten(shapes)
    drawn = [normal([seed, i], *leaf.shape, scale=scale) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, drawn)


def random_prompts(model, seed):
    """Return prompts of a model, none of which is nearly zero."""
    return random_like(prompt_shapes(model), seed)


def triangle(length):
    return causal_mask(jnp.zeros((1, length), jnp.int32))


def layer_norm(x, p):
    normal = (x - x.mean(-1, keepdims=True)) / (x.var(-1, keepdims=True) + 1e-5) ** 0.5
    return normal * p["scale"] + p["bias"]


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def layer_of(tree, layer):
    return jax.tree.map(lambda w: w[layer], tree)


def rows_of(clip, names, length, position):
    """The sequences of docs/method.md: for each text, pairs (token id, context row or -1)."""
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


def text_features(clip, rows, context):
    """The text tower: whole sequences, unscanned blocks, every position.

    rows: those of `rows_of`; context: (depth, C, n, D_t).
    """
    length = max(map(len, rows))
    padded = np.array([row + [(0, -1)] * (length - len(row)) for row in rows])
    ends = np.array([len(row) - 1 for row in rows])
    return _text_features(clip.config.text, clip.params["text"], padded, ends, context)


@functools.partial(jax.jit, static_argnums=0)
def _text_features(config, weights, padded, ends, context):
    ids, places = padded[..., 0], padded[..., 1]
    each, length = jnp.arange(len(ids)), ids.shape[1]
    placed = [own[each[:, None], places] for own in context]
    inside = (places >= 0)[..., None]
    x = jnp.where(inside, placed[0], jnp.asarray(weights["token_embedding"])[ids])
    x = x + weights["position_embedding"][:length]
    for layer in range(config.layers):
        if 0 < layer < len(placed):
            x = jnp.where(inside, placed[layer], x)
        own = layer_of(weights["transformer"]["blocks"], layer)
        x = Block(config).apply({"params": own}, x, mask=triangle(length))
    return layer_norm(x[each, ends], weights["ln_final"]) @ weights["projection"]


@functools.partial(jax.jit, static_argnums=0)
def _enter(config, params, images):
    """The tokens that enter the first block, and frozen CLIP's features."""
    module = CLIP(config)
    x = module.apply({"params": params}, method=lambda m: m.vision.embed(images))
    return x, module.apply({"params": params}, method=lambda m: m.vision(images).features)


@functools.partial(jax.jit, static_argnums=0)
def _block(config, params, x):
    def run(block):
        return block(x), block.attention(x)

    return Block(config).apply({"params": params}, method=run)


@functools.partial(jax.jit, static_argnums=0)
def _visual_tokens(model, prompts):
    return apply(model, {}, prompts, method="visual_tokens")


def prompted_tower(clip, model, prompts, images, texts):
    """The prompted image tower as the papers write it: prompts are appended, and their outputs are
    dropped, except after the last of `visual_depth` layers.

    Each block is called by itself, so that all models of these sizes share what is compiled.
    """
    config, weights = model.config, clip.params["vision"]
    before_cavpt = visual_layers(clip.config, config)
    x, z = map(np.asarray, _enter(clip.config, clip.params, images))
    idx = np.argsort(-(unit(z) @ texts.frozen.T), axis=1)
    idx = idx[:, : min(config.top_k, len(texts.frozen))]
    has_tokens = config.visual_length and before_cavpt
    visual = np.asarray(_visual_tokens(model, prompts)) if has_tokens else None
    auxiliary, made_of, tokens = [], [], x.shape[1]
    for layer in range(clip.config.vision.layers):
        if layer < before_cavpt:
            added = np.zeros((0, x.shape[-1]), np.float32)
            if visual is not None and layer < visual_depth(clip.config, config):
                added = visual[layer]
            if config.ln_pre and layer == 0:
                added = layer_norm(added, weights["ln_pre"])
            added = np.broadcast_to(added, (len(x), *added.shape))
            if layer == config.visual_depth - 1:
                tokens += config.visual_length
        else:
            own = layer_of(prompts["cavpt"], layer - before_cavpt)
            auxiliary_logits, attended, added = _class_prompts(own, x, texts.learned[idx])
            auxiliary.append(auxiliary_logits)
            made_of.append(attended)
        own = layer_of(weights["transformer"]["blocks"], layer)
        seen = _block(clip.config.vision, own, np.concatenate([x, added], axis=1))
        x, attention = map(np.asarray, seen)
        x = x[:, :tokens]
    features = unit(layer_norm(x[:, 0], weights["ln_post"]) @ weights["projection"])
    logits = np.exp(clip.params["logit_scale"]) * features @ unit(texts.learned).T
    of_classes = [np.stack(a, 1) for a in (auxiliary, made_of) if a]
    return logits, idx, features, attention[:, :, 0], of_classes


def _class_prompts(own, x, texts):
    """CAVPT of one layer: its auxiliary logits, attention and prompts."""
    c = texts @ own["class_projection"]["kernel"] + own["class_projection"]["bias"]
    shared = np.broadcast_to(own["global_tokens"], (len(x), *own["global_tokens"].shape))
    m = np.concatenate([x, shared], axis=1)
    keys = (m @ own["key"]["kernel"]).transpose(0, 2, 1)
    attended = softmax((c @ own["query"]["kernel"]) @ keys / np.sqrt(np.float32(32)), -1)
    o = attended @ m @ own["value"]["kernel"]
    auxiliary = layer_norm(o, own["ln_classifier"]) @ own["classifier"]["kernel"]
    return auxiliary, attended, layer_norm(o + c, own["ln_prompt"])
