"""Pre-trains the bundled tiny CLIP on Noto emoji and their names.

    python tools/pretrain_tiny_clip.py node_modules/emoji-datasource-google dpt_jax/assets/tiny-clip

It sees no other drawings than Noto's, so that Twemoji stays a style it does not
know. The result is a model directory as the Hugging Face hub has them.

Shapes: N drawings, P phrases, B batch, T tokens of a caption after start-of-text.
"""

import argparse
import functools
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy
from emoji_names import Emoji, UserError, class_words, read_emoji
from etils import epath
from PIL import Image

from dpt_jax.clip.config import CLIPConfig, TransformerConfig
from dpt_jax.clip.model import CLIP, normalize
from dpt_jax.clip.names import to_transformers
from dpt_jax.clip.preprocessing import MEAN, STD
from dpt_jax.clip.text import TextLayout
from dpt_jax.clip.tokenizer import Tokenizer, load_tokenizer
from dpt_jax.clip.transformers_config import config_to_dict
from dpt_jax.clip.vocabulary import END, START, openai_vocabulary, vocabulary_files

IMAGE_SIZE = 64
MERGES = 4000
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
# Most of training looks at a random half of each image's patches, which halves the time and keeps
# the tower from leaning on few of them; the last part of it looks at all.
KEPT_PATCHES, WHOLE_IMAGE_SHARE = 0.5, 0.15
EPOCHS_BETWEEN_WRITES = 10


class Corpus(NamedTuple):
    """Drawings and what may be said of them.

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


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("package", help="the unpacked npm package emoji-datasource-google")
    parser.add_argument("target", help="the model directory to write")
    parser.add_argument("--epochs", type=int, default=110)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        pretrain(options)
    except UserError as reason:
        print(reason, file=sys.stderr)
        raise SystemExit(2) from None


def pretrain(options: argparse.Namespace) -> None:
    """Trains with the given command-line options and writes the model directory."""
    if options.epochs < 1 or options.learning_rate <= 0:
        raise UserError("--epochs and --learning-rate must be positive.")
    emoji = read_emoji(options.package, "google")
    if not 2 <= options.batch_size <= len(emoji):
        raise UserError(
            f"--batch-size must lie between 2 and the number of drawings, {len(emoji)}."
        )
    target = pathlib.Path(options.target)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as reason:
        raise UserError(f"{target} cannot be made ({reason}).") from reason

    vocabulary = vocabulary_files(*openai_vocabulary(MERGES))
    for name, text in vocabulary.items():
        (target / name).write_text(text, encoding="utf-8")
    tokenizer = load_tokenizer(epath.Path(target))
    config = make_config(len(json.loads(vocabulary["vocab.json"])))
    corpus = make_corpus(emoji, tokenizer)
    print(f"{len(emoji)} drawings, {corpus.fits.shape[1]} phrases, {config.vocab_size} tokens")

    def write(params: Any, epoch: int, loss: float) -> None:
        write_model(target, params, config, tokenizer, model_card(len(emoji), epoch, loss, options))
        print(f"wrote {target}", flush=True)

    train(corpus, config, tokenizer.start, options, write)


def make_config(vocab_size: int) -> CLIPConfig:
    """The sizes of the tiny CLIP: heads are 64 wide as in every CLIP."""
    vision = TransformerConfig(width=128, layers=4, heads=2, mlp_width=512)
    text = TransformerConfig(width=128, layers=3, heads=2, mlp_width=512)
    return CLIPConfig(
        128, IMAGE_SIZE, patch_size=8, vision=vision, text=text, vocab_size=vocab_size
    )


def make_corpus(emoji: list[Emoji], tokenizer: Tokenizer) -> Corpus:
    """Decodes every drawing and encodes every phrase in every template, once."""
    drawings = [Image.open(e.image).convert("RGBA").resize((IMAGE_SIZE, IMAGE_SIZE)) for e in emoji]
    # Interpolation must not bring in the colours of transparent pixels.
    images = np.stack([np.asarray(drawing.convert("RGBa")) for drawing in drawings])
    classes = [class_words(e.subcategory) for e in emoji]
    said = dict.fromkeys([*classes, *(name for e in emoji for name in e.names)])

    encoded = {
        phrase: [[*tokenizer.encode(t.format(phrase)), tokenizer.end] for t in TEMPLATES]
        for phrase in said
    }
    index = {
        p: i for i, p in enumerate(p for p in said if max(map(len, encoded[p])) <= LONGEST_CAPTION)
    }
    missing = sorted(set(classes) - set(index))
    if missing:
        raise UserError(
            f"the subcategory name {missing[0]!r} is longer than {LONGEST_CAPTION} tokens."
        )
    tokens = np.full((len(TEMPLATES), len(index), LONGEST_CAPTION), tokenizer.end, np.int32)
    for phrase, column in index.items():
        for row, ids in enumerate(encoded[phrase]):
            tokens[row, column, : len(ids)] = ids

    class_phrase = np.array([index[c] for c in classes])
    # A name that is too long leaves the subcategory alone to say what the drawing shows.
    name_phrases = [
        [index[n] for n in e.names if n in index] or [index[c]]
        for e, c in zip(emoji, classes, strict=True)
    ]
    fits = np.zeros((len(emoji), len(index)), bool)
    fits[np.arange(len(emoji)), class_phrase] = True
    for row, columns in enumerate(name_phrases):
        fits[row, columns] = True

    # Between one drawing in N and one subcategory in all: 259 flags would drown 16 insects.
    sizes = np.bincount(class_phrase)[class_phrase]
    weights = sizes**-0.5 / np.sum(sizes**-0.5)
    return Corpus(images, tokens, fits, weights, class_phrase, name_phrases)


def batches(corpus: Corpus, batch_size: int, generator: np.random.Generator) -> Iterator[Batch]:
    """One epoch of batches, about as many draws as there are drawings; none twice in a batch."""
    for _ in range(round(len(corpus.images) / batch_size)):
        image = generator.choice(len(corpus.images), batch_size, replace=False, p=corpus.weights)
        names = np.array([generator.choice(corpus.name_phrases[i]) for i in image])
        phrase = np.where(
            generator.random(batch_size) < CLASS_SHARE, corpus.class_phrase[image], names
        )
        yield Batch(image, phrase, generator.integers(len(TEMPLATES), size=batch_size))


def train(
    corpus: Corpus,
    config: CLIPConfig,
    start_token: int,
    options: argparse.Namespace,
    write: Callable[[Any, int, float], None],
) -> None:
    """Trains, calling write(parameters, epoch, mean loss of the epoch) now and then and at the end."""
    model = CLIP(config, jnp.bfloat16)
    images, tokens, fits = (
        jnp.asarray(part) for part in (corpus.images, corpus.tokens, corpus.fits)
    )
    steps = options.epochs * round(len(corpus.images) / options.batch_size)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, options.learning_rate, max(1, steps // 20), steps
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            schedule,
            b2=0.98,
            weight_decay=0.1,
            mask=lambda tree: jax.tree.map(lambda p: p.ndim > 1, tree),
        ),
    )

    def layout(own: jax.Array) -> TextLayout:
        """Captions (B, T) after the start-of-text token that they share."""
        no_context = jnp.full_like(own, -1)
        end = jnp.argmax(own == config.vocab_size - 1, axis=1)
        return TextLayout(jnp.array([start_token]), jnp.array([-1]), own, no_context, end)

    def features(
        clip: CLIP, key: jax.Array, pixels: jax.Array, own: jax.Array, kept: int
    ) -> tuple[Any, Any]:
        return image_features(clip, key, pixels, kept), clip.text(layout(own))

    def loss_of(params: Any, key: jax.Array, batch: Batch, kept: int) -> jax.Array:
        augment_key, patch_key = jax.random.split(key)
        pixels = augment(augment_key, images[batch.image])
        own = tokens[batch.template, batch.phrase]
        outputs: Any = model.apply(
            {"params": params}, patch_key, pixels, own, kept, method=features
        )
        image, text = outputs
        logits = jnp.exp(params["logit_scale"]) * normalize(image) @ normalize(text).T
        return contrastive_loss(logits, fits[batch.image][:, batch.phrase])

    @functools.partial(jax.jit, static_argnames="kept")
    def step(
        params: Any, state: Any, key: jax.Array, batch: Batch, kept: int
    ) -> tuple[Any, Any, jax.Array]:
        loss, gradient = jax.value_and_grad(loss_of)(params, key, batch, kept)
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        scale = jnp.clip(params["logit_scale"], 0.0, np.log(MAX_LOGIT_SCALE))
        return {**params, "logit_scale": scale}, state, loss

    init_key, step_key = jax.random.split(jax.random.key(options.seed))
    pixels = jnp.zeros((1, IMAGE_SIZE, IMAGE_SIZE, 3))
    params = jax.jit(model.init)(init_key, pixels, layout(tokens[:1, 0]))["params"]
    state = optimizer.init(params)
    generator = np.random.default_rng(options.seed)
    began, number = time.perf_counter(), 0
    for epoch in range(1, options.epochs + 1):
        losses = []
        whole = epoch > options.epochs * (1 - WHOLE_IMAGE_SHARE)
        kept = config.grid**2 if whole else round(config.grid**2 * KEPT_PATCHES)
        for batch in batches(corpus, options.batch_size, generator):
            params, state, loss = step(
                params, state, jax.random.fold_in(step_key, number), batch, kept
            )
            losses.append(loss)
            number += 1
        mean = float(np.mean(jax.device_get(losses)))
        spent = time.perf_counter() - began
        print(
            f"epoch {epoch}/{options.epochs}  loss {mean:.3f}  scale {float(jnp.exp(params['logit_scale'])):.1f}  "
            f"{number * options.batch_size / spent:.0f} images/s  ETA {spent / number * (steps - number):.0f} s",
            flush=True,
        )
        if epoch % EPOCHS_BETWEEN_WRITES == 0 or epoch == options.epochs:
            write(jax.device_get(params), epoch, mean)


def image_features(clip: CLIP, key: jax.Array, pixels: jax.Array, kept: int) -> jax.Array:
    """Features (B, E) of normalised images (B, S, S, 3), from the class token and `kept` random patches of each."""
    tower, last = clip.vision, clip.config.vision.layers - 1
    x = tower.embed(pixels)
    order = jnp.argsort(jax.random.uniform(key, (len(x), x.shape[1] - 1)), axis=1)[:, :kept]
    x = jnp.concatenate([x[:, :1], jnp.take_along_axis(x[:, 1:], order[..., None], axis=1)], axis=1)
    for layer in range(last):
        x = tower.transformer.block(layer)(x)
    x = tower.transformer.block(last)(x, query=0)
    return tower.ln_post(x[:, 0]) @ tower.projection


def contrastive_loss(logits: jax.Array, fits: jax.Array) -> jax.Array:
    """Symmetric InfoNCE of logits (B, B), images by captions, whose pairs are the diagonal.

    fits: (B, B), whether a caption is true of an image. A true caption that
    belongs to another image is neither a positive nor a negative: it is left out.
    """
    left_out = fits & ~jnp.eye(len(logits), dtype=bool)
    logits = jnp.where(left_out, -jnp.inf, logits)
    pair = jnp.diagonal(logits)
    losses = [jax.nn.logsumexp(logits, axis=axis) - pair for axis in (0, 1)]
    return (losses[0].mean() + losses[1].mean()) / 2


def augment(key: jax.Array, drawings: jax.Array) -> jax.Array:
    """Random views of drawings (B, S, S, 4) uint8, as normalised pixels (B, S, S, 3).

    Placed, turned and flipped at random, recoloured, blurred and put on white or
    on a colour: what differs between two hands that draw the same thing.
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
    """Crops or shrinks, moves, turns and mirrors each of x (B, S, S, C); transparent outside."""
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
    """Values of x (H, W, C) at fractional positions (h, w), zero outside: (h, w, C)."""
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
    """Changes hue, saturation, contrast and brightness of rgb (B, S, S, 3), multiplied by alpha."""
    count = len(rgb)
    hue, colourful, grey, contrast, brightness = jax.random.split(key, 5)
    angle = 2 * np.pi * jax.random.uniform(hue, (count,), minval=-0.08, maxval=0.08)
    saturation = jax.random.uniform(colourful, (count,), minval=0.5, maxval=1.6)
    saturation = jnp.where(jax.random.bernoulli(grey, 0.05, (count,)), 0.0, saturation)
    # In YIQ, hue is the angle and saturation the length of the two colour axes.
    to_yiq = jnp.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    cos, sin = saturation * jnp.cos(angle), saturation * jnp.sin(angle)
    zero, one = jnp.zeros(count), jnp.ones(count)
    change = jnp.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], axis=-1).reshape(
        count, 3, 3
    )
    matrix = jnp.linalg.inv(to_yiq) @ change @ to_yiq
    gain = jax.random.uniform(contrast, (count, 1, 1, 1), minval=0.65, maxval=1.35)
    shift = jax.random.uniform(brightness, (count, 1, 1, 1), minval=-0.2, maxval=0.2)
    changed = jnp.einsum("bhwc,bdc->bhwd", rgb, matrix)
    return jnp.clip(gain * changed + (0.5 * (1 - gain) + shift) * alpha, 0.0, alpha)


def write_model(
    target: pathlib.Path, params: Any, config: CLIPConfig, tokenizer: Tokenizer, card: str
) -> None:
    """The model directory, float16 but for the temperature, that transformers' CLIPModel loads too."""
    tensors = {
        name: tensor.astype(np.float16) for name, tensor in to_transformers(params, config).items()
    }
    # exp() of a rounded logarithm is off by percents.
    tensors["logit_scale"] = np.asarray(params["logit_scale"], np.float32)
    (target / "model.safetensors").write_bytes(
        safetensors.numpy.save(tensors, metadata={"format": "pt"})
    )
    preprocessing = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": IMAGE_SIZE},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "do_convert_rgb": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
    }
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
        "preprocessor_config.json": preprocessing,
        "tokenizer_config.json": tokenization,
    }
    for name, content in contents.items():
        (target / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for name, text in tokenizer.files.items():
        (target / name).write_text(text, encoding="utf-8")
    (target / "README.md").write_text(card, encoding="utf-8")


def model_card(drawings: int, epoch: int, loss: float, options: argparse.Namespace) -> str:
    """README.md of the model directory."""
    return f"""\
---
license: apache-2.0
library_name: transformers
tags: [clip, zero-shot-image-classification]
---
# Tiny CLIP of emoji

A CLIP of two small transformers (images of {IMAGE_SIZE} x {IMAGE_SIZE} pixels in patches of 8; vision 4 layers, text 3
layers, both 128 wide), for demonstrations and tests of prompt tuning on a machine without network or accelerator.

## How it was made
`tools/pretrain_tiny_clip.py`, epoch {epoch} of {options.epochs}, batch size {options.batch_size}, learning rate \
{options.learning_rate:g}, seed {options.seed}, from random weights; mean
contrastive loss of that epoch {loss:.3f}. The data are the {drawings} Noto emoji of the npm package
emoji-datasource-google that Twemoji has too, 64-pixel PNG files, with captions made from their names or from
their subcategories in plain words, such as "{TEMPLATES[0].format("mammal")}" It saw no Twemoji drawing.

The vocabulary is CLIP's byte-pair encoding cut off after {MERGES} merges. Weights are stored in float16.

## What it is for
Telling drawings of things apart in a style that it was not trained on, as a stand-in for a real CLIP that is
three orders of magnitude larger. It knows nothing of photographs, of people or of words beyond emoji names, and
its accuracy says nothing about CLIP's. Do not use it for anything but trying out software.

## Licence
Apache-2.0, as the Noto emoji images (Copyright Google LLC). The names and subcategories are from emoji-data
(MIT, Copyright Cal Henderson).
"""


if __name__ == "__main__":
    main()
