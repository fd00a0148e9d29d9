"""What the tiny CLIP learns from: drawings, captions that are true of them, batches of both.

Shapes: N drawings, P phrases, B batch, T tokens of a caption after start-of-text.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from dpt_jax.clip.tokenizer import Tokenizer
from dpt_jax.errors import UserError
from tools.emoji_names import Emoji, class_words

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


def make_corpus(emoji: Sequence[Emoji], tokenizer: Tokenizer) -> Corpus:
    """Decode every drawing and encode every phrase in every template, once."""
    classes = [class_words(e.subcategory) for e in emoji]
    phrases = dict.fromkeys([*classes, *(name for e in emoji for name in e.names)])
    tokens, index = encode_phrases(list(phrases), tokenizer)
    missing = sorted(set(classes) - set(index))
    if missing:
        raise UserError(
            f"the subcategory name {missing[0]!r} is longer than {LONGEST_CAPTION} tokens."
        )
    class_phrase = np.array([index[c] for c in classes])
    # A drawing whose names are all too long is described by its subcategory alone.
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
