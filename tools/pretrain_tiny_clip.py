"""Pre-trains the bundled tiny CLIP on Noto emoji and their names.

    npm install emoji-datasource-google
    python tools/pretrain_tiny_clip.py node_modules/emoji-datasource-google dpt_jax/assets/tiny-clip

It trains on Noto's drawings only, so that Twemoji is a style it has not seen.

Shapes: N drawings, P phrases, B batch, S side of an image in pixels, C channels, T tokens of a
caption after start-of-text, E the joint embedding.
"""

import functools
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

# A script's import path begins in its own folder, not at the repository's root.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy
from etils import epath
from PIL import Image

from dpt_jax.clip.blocks import Params
from dpt_jax.clip.config import (
    MEAN,
    STD,
    CLIPConfig,
    TransformerConfig,
    config_to_dict,
    processor_to_dict,
)
from dpt_jax.clip.files import tensors_of
from dpt_jax.clip.model import CLIP, normalize
from dpt_jax.clip.packing import PackedTexts
from dpt_jax.clip.tokenizer import Tokenizer, load_tokenizer
from dpt_jax.clip.vocabulary import END, START, openai_vocabulary
from tools.emoji_names import Emoji, class_words, read_emoji

IMAGE_SIZE = 64
TEMPLATES = (
    "a drawing of a {}.",
    "a drawing of the {}.",
    "a photo of a {}.",
    "a picture of a {}.",
    "an emoji of a {}.",
    "this is a {}.",
    "{}",
)
LONGEST_CAPTION = 16  # tokens after start-of-text; a few long names do not fit
CLASS_SHARE = 0.6  # of the captions that name the subcategory and not the thing
MAX_LOGIT_SCALE = 100.0
# Most of the training takes a random half of each image's patches. That halves the time, and keeps
# the tower from relying on few of them. The last part of the training takes all patches.
KEPT_PATCHES, WHOLE_IMAGE_SHARE = 0.5, 0.15
MERGES = 4000  # of CLIP's byte-pair encoding


class Recipe(NamedTuple):
    """The length and pace of the training."""

    epochs: int = 110
    batch_size: int = 128
    learning_rate: float = 1.5e-3
    seed: int = 0


def pretrain(package: str, target: pathlib.Path, recipe: Recipe) -> None:
    """Train by the recipe and write the model folder `target`.

    package: the unpacked npm package emoji-datasource-google.
    """
    emoji = read_emoji(package, "google")
    target.mkdir(parents=True, exist_ok=True)
    config = tiny_config(write_vocabulary(target))
    tokenizer = load_tokenizer(epath.Path(target), config.vocab_size)
    corpus = make_corpus(emoji, tokenizer)
    print(f"{len(emoji)} drawings, {corpus.fits.shape[1]} phrases, {config.vocab_size} tokens")
    params = train(corpus, config, tokenizer.start, recipe)
    write_model(target, params, config)
    print(f"wrote {target}")


class Corpus(NamedTuple):
    """Drawings and the captions that are true of them.

    images: (N, 64, 64, 4) uint8, colours multiplied by alpha. tokens:
    (templates, P, T) int32 without start-of-text. fits: (N, P) bool, whether a
    phrase is true of a drawing. weights: (N,) how often to draw each, sums to 1.
    class_phrase: (N,) index of the drawing's subcategory; name_phrases: those of its names.
    """

    images: np.ndarray
    tokens: np.ndarray
    fits: np.ndarray
    weights: np.ndarray
    class_phrase: np.ndarray
    name_phrases: list[list[int]]


class Batch(NamedTuple):
    """Indices that make up one batch: drawings (B,), phrases (B,), templates (B,)."""

    image: np.ndarray
    phrase: np.ndarray
    template: np.ndarray


def make_corpus(emoji: Sequence[Emoji], tokenizer: Tokenizer) -> Corpus:
    """Decode every drawing and encode every phrase in every template, once."""
    classes = [class_words(e.subcategory) for e in emoji]
    phrases = dict.fromkeys([*classes, *(name for e in emoji for name in e.names)])
    tokens, index = encode_phrases(list(phrases), tokenizer)
    class_phrase = np.array([index[c] for c in classes])
    # A drawing whose names are all too long is described only by its subcategory.
    name_phrases = [
        [index[n] for n in e.names if n in index] or [index[c]]
        for e, c in zip(emoji, classes, strict=True)
    ]
    fits = np.zeros((len(emoji), len(index)), bool)
    fits[np.arange(len(emoji)), class_phrase] = True
    for row, columns in enumerate(name_phrases):
        fits[row, columns] = True

    # A compromise between equal weights of drawings and of subcategories: there are 259 flags, but
    # 16 insects.
    sizes = np.bincount(class_phrase)[class_phrase]
    weights = sizes**-0.5 / np.sum(sizes**-0.5)
    return Corpus(read_drawings(emoji), tokens, fits, weights, class_phrase, name_phrases)


def read_drawings(emoji: Sequence[Emoji]) -> np.ndarray:
    """Return (N, 64, 64, 4) uint8 with the colours multiplied by alpha."""
    size = (IMAGE_SIZE, IMAGE_SIZE)
    drawings = [Image.open(e.image).convert("RGBA").resize(size) for e in emoji]
    # Interpolation must not bring in the colours of transparent pixels.
    return np.stack([np.asarray(drawing.convert("RGBa")) for drawing in drawings])


def encode_phrases(
    phrases: Sequence[str], tokenizer: Tokenizer
) -> tuple[np.ndarray, dict[str, int]]:
    """Return tokens (templates, P, T) and the index of each phrase that fits in T tokens."""
    encoded = {
        phrase: [[*tokenizer.encode(t.format(phrase)), tokenizer.end] for t in TEMPLATES]
        for phrase in phrases
    }
    short = [p for p in phrases if max(map(len, encoded[p])) <= LONGEST_CAPTION]
    index = {phrase: i for i, phrase in enumerate(short)}
    tokens = np.full((len(TEMPLATES), len(index), LONGEST_CAPTION), tokenizer.end, np.int32)
    for phrase, column in index.items():
        for row, ids in enumerate(encoded[phrase]):
            tokens[row, column, : len(ids)] = ids
    return tokens, index


def batches(corpus: Corpus, batch_size: int, generator: np.random.Generator) -> Iterator[Batch]:
    """Yield one epoch of batches, about N draws in all; no drawing is twice in a batch."""
    for _ in range(round(len(corpus.images) / batch_size)):
        image = generator.choice(len(corpus.images), batch_size, replace=False, p=corpus.weights)
        names = np.array([generator.choice(corpus.name_phrases[i]) for i in image])
        phrase = np.where(
            generator.random(batch_size) < CLASS_SHARE, corpus.class_phrase[image], names
        )
        yield Batch(image, phrase, generator.integers(len(TEMPLATES), size=batch_size))


class State(NamedTuple):
    """What a step changes."""

    params: Params
    optimizer: optax.OptState


Step = Callable[[State, jax.Array, Batch, int], tuple[State, jax.Array]]


def tiny_config(vocab_size: int) -> CLIPConfig:
    """Return the sizes of the tiny CLIP.  Heads are 64 wide, as in every CLIP."""
    vision = TransformerConfig(width=128, layers=4, heads=2, mlp_width=512)
    text = TransformerConfig(width=128, layers=3, heads=2, mlp_width=512)
    return CLIPConfig(
        128, IMAGE_SIZE, patch_size=8, vision=vision, text=text, vocab_size=vocab_size
    )


def train(corpus: Corpus, config: CLIPConfig, start: int, recipe: Recipe) -> Params:
    """Return the trained parameters.  start: the start-of-text token."""
    steps = recipe.epochs * round(len(corpus.images) / recipe.batch_size)
    optimizer = make_optimizer(recipe.learning_rate, steps)
    step = make_step(corpus, config, start, optimizer)
    init_key, step_key = jax.random.split(jax.random.key(recipe.seed))
    params = init_params(config, init_key, caption_layout(corpus.tokens[:1, 0], start))
    state, number = State(params, optimizer.init(params)), 0
    generator = np.random.default_rng(recipe.seed)
    for epoch in range(1, recipe.epochs + 1):
        losses = []
        whole = epoch > recipe.epochs * (1 - WHOLE_IMAGE_SHARE)
        kept = config.grid**2 if whole else round(config.grid**2 * KEPT_PATCHES)
        for batch in batches(corpus, recipe.batch_size, generator):
            state, loss = step(state, jax.random.fold_in(step_key, number), batch, kept)
            losses.append(loss)
            number += 1
        mean = float(np.mean(jax.device_get(losses)))
        scale = float(jnp.exp(state.params["logit_scale"]))
        print(f"epoch {epoch}/{recipe.epochs}  loss {mean:.3f}  scale {scale:.1f}", flush=True)
    return jax.device_get(state.params)


def make_step(
    corpus: Corpus, config: CLIPConfig, start: int, optimizer: optax.GradientTransformation
) -> Step:
    """Return the compiled step: (state, key, batch, patches kept of an image) -> (state, loss)."""
    model = CLIP(config, jnp.bfloat16, remat="none")
    images, tokens, fits = map(jnp.asarray, (corpus.images, corpus.tokens, corpus.fits))

    def features(
        clip: CLIP, key: jax.Array, pixels: jax.Array, captions: jax.Array, kept: int
    ) -> tuple[jax.Array, jax.Array]:
        layout = caption_layout(captions, start)
        return image_features(clip, key, pixels, kept), clip.text(layout)

    def loss_of(params: Params, key: jax.Array, batch: Batch, kept: int) -> jax.Array:
        augment_key, patch_key = jax.random.split(key)
        pixels = augment(augment_key, images[batch.image])
        captions = tokens[batch.template, batch.phrase]
        outputs: Any = model.apply(
            {"params": params}, patch_key, pixels, captions, kept, method=features
        )
        image, text = outputs
        logits = jnp.exp(params["logit_scale"]) * normalize(image) @ normalize(text).T
        return contrastive_loss(logits, fits[batch.image][:, batch.phrase])

    @functools.partial(jax.jit, static_argnames="kept")
    def step(state: State, key: jax.Array, batch: Batch, kept: int) -> tuple[State, jax.Array]:
        loss, gradient = jax.value_and_grad(loss_of)(state.params, key, batch, kept)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        scale = jnp.clip(params["logit_scale"], 0.0, np.log(MAX_LOGIT_SCALE))
        return State({**params, "logit_scale": scale}, optimizer_state), loss

    return step


def make_optimizer(learning_rate: float, steps: int) -> optax.GradientTransformation:
    """Return AdamW with warm-up and cosine; vectors and scalars do not decay."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, max(1, steps // 20), steps)

    def decays(params: Params) -> Any:
        return jax.tree.map(lambda p: p.ndim > 1, params)

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b2=0.98, weight_decay=0.1, mask=decays),
    )


def init_params(config: CLIPConfig, key: jax.Array, layout: PackedTexts) -> Params:
    """Return random parameters, float32.  layout: any, only for shapes."""
    pixels = jnp.zeros((1, config.image_size, config.image_size, 3))
    model = CLIP(config, jnp.bfloat16)
    return jax.jit(model.init)(key, pixels, layout)["params"]


def caption_layout(captions: jax.Array | np.ndarray, start: int) -> PackedTexts:
    """Return the layout of captions (B, T) that all follow one start-of-text token.

    Each caption has its own row, unlike in `packing.pack`. So shapes depend only on B and T, and
    one compiled step serves every batch. Captions are padded with end-of-text; tokens after the
    first have no effect, since attention is causal.
    """
    captions = jnp.asarray(captions)
    count, length = captions.shape
    rows = jnp.broadcast_to(jnp.arange(count)[:, None], captions.shape)
    places = jnp.broadcast_to(jnp.arange(1, length + 1), captions.shape)
    return PackedTexts(
        prefix_tokens=jnp.array([start]),
        prefix_context=jnp.array([-1]),
        tokens=captions,
        context=jnp.full_like(captions, -1),
        segment_ids=rows,
        position_ids=places,
        # End-of-text is the largest token there is, so the first of the largest is the first end.
        eot_positions=jnp.argmax(captions, axis=1)[:, None],
        eot_index=jnp.arange(count),
    )


def image_features(clip: CLIP, key: jax.Array, pixels: jax.Array, kept: int) -> jax.Array:
    """Return features (B, E) from the class token and `kept` random patches of each image.

    pixels: normalised images (B, S, S, 3).
    """
    tower, last = clip.vision, clip.config.vision.layers - 1
    x = tower.embed(pixels)
    order = jnp.argsort(jax.random.uniform(key, (len(x), x.shape[1] - 1)), axis=1)[:, :kept]
    patches = jnp.take_along_axis(x[:, 1:], order[..., None], axis=1)
    x = jnp.concatenate([x[:, :1], patches], axis=1)
    x = tower.blocks(x, 0, last)
    # Only the class token leaves the last block.
    x = tower.transformer.block(last)(x, query=jnp.zeros((1, 1), jnp.int32))
    return tower.ln_post(x[:, 0]) @ tower.projection


def contrastive_loss(logits: jax.Array, fits: jax.Array) -> jax.Array:
    """Return the symmetric InfoNCE of logits (B, B), images by captions, pairs on the diagonal.

    fits: (B, B), whether a caption is true of an image. A true caption that
    belongs to another image is neither a positive nor a negative: it is left out.
    """
    left_out = fits & ~jnp.eye(len(logits), dtype=bool)
    logits = jnp.where(left_out, -jnp.inf, logits)
    pair = jnp.diagonal(logits)
    losses = [jax.nn.logsumexp(logits, axis=axis) - pair for axis in (0, 1)]
    return (losses[0].mean() + losses[1].mean()) / 2


def augment(key: jax.Array, drawings: jax.Array) -> jax.Array:
    """Return random views of drawings (B, S, S, 4) uint8, as normalised pixels (B, S, S, 3).

    Each is placed, turned, flipped, recoloured and blurred at random, and put on white or
    on a colour.
    """
    place, recolour, soften, ground = jax.random.split(key, 4)
    x = random_placement(place, drawings.astype(jnp.float32) / 255)
    rgb, alpha = random_colours(recolour, x[..., :3], x[..., 3:]), x[..., 3:]

    on_white, colour = jax.random.split(ground)
    coloured = jax.random.bernoulli(on_white, 0.25, (len(x), 1, 1, 1))
    background = jnp.where(coloured, jax.random.uniform(colour, (len(x), 1, 1, 3)), 1.0)
    pixels = rgb + (1 - alpha) * background

    amount = jnp.maximum(jax.random.uniform(soften, (len(x), 1, 1, 1), minval=-1.0), 0.0)
    padded = jnp.pad(pixels, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    blurred = (
        jax.lax.reduce_window(padded, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "VALID") / 9
    )
    pixels = pixels + amount * (blurred - pixels)
    return (pixels - jnp.array(MEAN)) / jnp.array(STD)


def random_placement(key: jax.Array, x: jax.Array) -> jax.Array:
    """Crop or shrink, move, turn and mirror each of x (B, S, S, C); transparent outside."""
    count, size = x.shape[:2]
    zoom, aspect, turn, mirror, move = jax.random.split(key, 5)
    # Side of the view in units of the drawing's, and its shape.
    side = jnp.exp(jax.random.uniform(zoom, (count,), minval=np.log(0.55), maxval=np.log(1.2)))
    stretch = jnp.exp(jax.random.uniform(aspect, (count,), minval=-0.15, maxval=0.15))
    angle = jax.random.uniform(turn, (count,), minval=-0.3, maxval=0.3)
    flip = jnp.where(jax.random.bernoulli(mirror, shape=(count,)), 1.0, -1.0)
    # A view may leave the drawing by a tenth, or end anywhere inside it.
    reach = jnp.abs(1 - side) + 0.1
    offset = reach[:, None] * jax.random.uniform(move, (count, 2), minval=-1.0)

    steps = (jnp.arange(size) + 0.5) / size * 2 - 1
    v, u = jnp.meshgrid(steps, steps, indexing="ij")

    def view(drawing: jax.Array, *draw: jax.Array) -> jax.Array:
        side, stretch, angle, flip, offset = draw
        across, down = u * side * stretch * flip, v * side / stretch
        column = across * jnp.cos(angle) - down * jnp.sin(angle) + offset[0]
        row = across * jnp.sin(angle) + down * jnp.cos(angle) + offset[1]
        return bilinear(drawing, (row + 1) * size / 2 - 0.5, (column + 1) * size / 2 - 0.5)

    return jax.vmap(view)(x, side, stretch, angle, flip, offset)


def bilinear(x: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
    """Return x (H, W, C) at fractional positions (h, w), zero outside: (h, w, C)."""
    padded = jnp.pad(x, ((1, 1), (1, 1), (0, 0)))
    row, column = (
        jnp.clip(p + 1, 0, n + 0.999) for p, n in ((row, x.shape[0]), (column, x.shape[1]))
    )
    top, left = (jnp.floor(p).astype(jnp.int32) for p in (row, column))
    y, z = (row - top)[..., None], (column - left)[..., None]
    upper = padded[top, left] * (1 - z) + padded[top, left + 1] * z
    lower = padded[top + 1, left] * (1 - z) + padded[top + 1, left + 1] * z
    return upper * (1 - y) + lower * y


def random_colours(key: jax.Array, rgb: jax.Array, alpha: jax.Array) -> jax.Array:
    """Change hue, saturation, contrast, brightness of rgb (B, S, S, 3), multiplied by alpha."""
    count = len(rgb)
    hue, colourful, grey, contrast, brightness = jax.random.split(key, 5)
    angle = 2 * np.pi * jax.random.uniform(hue, (count,), minval=-0.08, maxval=0.08)
    saturation = jax.random.uniform(colourful, (count,), minval=0.5, maxval=1.6)
    saturation = jnp.where(jax.random.bernoulli(grey, 0.05, (count,)), 0.0, saturation)
    # In YIQ, hue is the angle and saturation the length of the two colour axes.
    to_yiq = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    cos, sin = saturation * jnp.cos(angle), saturation * jnp.sin(angle)
    zero, one = jnp.zeros(count), jnp.ones(count)
    change = jnp.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], axis=-1).reshape(
        count, 3, 3
    )
    matrix = jnp.asarray(np.linalg.inv(to_yiq)) @ change @ jnp.asarray(to_yiq)
    gain = jax.random.uniform(contrast, (count, 1, 1, 1), minval=0.65, maxval=1.35)
    shift = jax.random.uniform(brightness, (count, 1, 1, 1), minval=-0.2, maxval=0.2)
    changed = jnp.einsum("bhwc,bdc->bhwd", rgb, matrix)
    return jnp.clip(gain * changed + (0.5 * (1 - gain) + shift) * alpha, 0.0, alpha)


def write_model(target: pathlib.Path, params: Params, config: CLIPConfig) -> None:
    """Write the model folder without its vocabulary; transformers' CLIPModel loads it.

    Weights are float16, except the temperature.
    """
    tensors = {
        name: tensor.astype(np.float16) for name, tensor in tensors_of(params, config).items()
    }
    # exp() of a rounded logarithm is off by percents.
    tensors["logit_scale"] = np.asarray(params["logit_scale"], np.float32)
    (target / "model.safetensors").write_bytes(
        safetensors.numpy.save(tensors, metadata={"format": "pt"})
    )
    tokenization = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": config.context_length,
        "bos_token": START,
        "eos_token": END,
        "pad_token": END,
        "unk_token": END,
    }
    contents = {
        "config.json": config_to_dict(config),
        "preprocessor_config.json": processor_to_dict(config.preprocessing, config.image_size),
        "tokenizer_config.json": tokenization,
    }
    for name, content in contents.items():
        (target / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_vocabulary(target: pathlib.Path, merge_count: int = MERGES) -> int:
    """Write CLIP's vocabulary, cut off after some merges.  Return its size."""
    ids, merges = openai_vocabulary(merge_count)
    lines = "\n".join(["#version: 0.2", *merges, ""])
    (target / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    (target / "merges.txt").write_text(lines, encoding="utf-8")
    return len(ids)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    pretrain(sys.argv[1], pathlib.Path(sys.argv[2]), Recipe())
