"""The text prompt (CoOp): learned context tokens in front of, around or behind the class name.

Symbols of the paper: C classes, n context tokens, D_t width of the text tower.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dpt_jax.clip.text import TextLayout
from dpt_jax.clip.tokenizer import Tokenizer
from dpt_jax.errors import UserError

POSITIONS = ("end", "middle", "front")
Row = list[tuple[int, int]]  # one text as (token id, context row or -1) a position
ROW = 64  # tokens of packed texts a row: enough to leave little padding, few enough that attention stays cheap


class TextPrompt(nn.Module):
    """Context tokens: (depth, n, D_t), or (depth, C, n, D_t) where each class has its own.

    Row 0 of the depth enters with the token embeddings, row l replaces the
    context tokens before layer l (0-based).
    """

    length: int
    depth: int
    width: int
    classes: int | None = None  # None: one context for all classes
    context_init: Callable[..., jax.Array] = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(self) -> jax.Array:
        own = () if self.classes is None else (self.classes,)
        return self.param("context", self.context_init, (self.depth, *own, self.length, self.width))


def context_from_words(words: str, token_embedding: Any, tokenizer: Tokenizer) -> np.ndarray:
    """Embeddings (n, D_t) of n words, which a context can start from.

    Raises UserError where a word is not a single token of the vocabulary.
    """
    ids = []
    for word in words.replace("_", " ").split():
        tokens = tokenizer.encode(word)
        if len(tokens) != 1:
            raise UserError(
                f"text_prompt.init: {word!r} is {len(tokens)} tokens; use words that are one token each."
            )
        ids += tokens
    return np.asarray(token_embedding, np.float32)[ids]


def initializer(start: np.ndarray | None) -> Callable[..., jax.Array]:
    """N(0, 0.02²), with the input layer's context set to `start` (n, D_t) where one is given."""
    normal = nn.initializers.normal(0.02)
    if start is None:
        return normal

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return normal(key, shape, dtype).at[0].set(jnp.asarray(start, dtype))

    return init


def prompt_layout(
    classnames: Sequence[str],
    tokenizer: Tokenizer,
    length: int,
    position: str = "end",
    class_specific: bool = False,
    context_length: int = 77,
) -> TextLayout:
    """The texts "ctx NAME." with n = length context tokens, SPEC's "Text prompt".

    position: "end" [SOS, ctx, NAME, ".", EOT], "middle" (half of the context
    on either side of the name) or "front" [SOS, NAME, ctx, ".", EOT].
    Raises UserError for an unknown position or a text over context_length.
    """
    if position not in POSITIONS:
        raise UserError(
            f"text_prompt.class_position: {position!r} is not one of {', '.join(POSITIONS)}."
        )
    before = {"end": length, "middle": length // 2, "front": 0}[position]
    rows = []
    for c, name in enumerate(classnames):
        first = c * length if class_specific else 0
        context = [(0, first + i) for i in range(length)]
        name = name.replace("_", " ")
        tokens = [(t, -1) for t in tokenizer.encode(name + ".")]
        # "end" puts no context behind the name, so where the name stops does not matter there.
        stop = len(tokenizer.encode(name)) if before < length else 0
        words = [*context[:before], *tokens[:stop], *context[before:], *tokens[stop:]]
        rows.append([(tokenizer.start, -1), *words, (tokenizer.end, -1)])
    return _layout(rows, classnames, context_length)


def plain_layout(
    texts: Sequence[str], tokenizer: Tokenizer, context_length: int = 77
) -> TextLayout:
    """Ordinary texts, without context.  Raises UserError for one over context_length."""
    rows = [
        [(t, -1) for t in (tokenizer.start, *tokenizer.encode(text), tokenizer.end)]
        for text in texts
    ]
    return _layout(rows, texts, context_length)


def _layout(rows: list[Row], names: Sequence[str], context_length: int) -> TextLayout:
    for name, row in zip(names, rows, strict=True):
        if len(row) > context_length:
            raise UserError(
                f"{name!r} makes a text of {len(row)} tokens, but CLIP's text tower takes {context_length}: "
                "shorten the name, the template or text_prompt.length."
            )
    # What all texts begin with is encoded once; each keeps at least its end-of-text token.
    shared, shortest = 0, min(map(len, rows))
    for column in zip(*rows, strict=False):
        if shared == shortest - 1 or len(set(column)) > 1:
            break
        shared += 1
    prefix = np.asarray(rows[0][:shared], np.int32).reshape(shared, 2)
    own = [row[shared:] for row in rows]
    packed = pack([len(row) for row in own])
    width = max(sum(len(own[c]) for c in members) for members in packed)
    table = np.tile(np.array([0, -1, -1, 0], np.int32), (len(packed), width, 1))
    ends = np.zeros((len(packed), max(map(len, packed))), np.int32)
    order = np.zeros(len(rows), np.int32)
    for r, members in enumerate(packed):
        start = 0
        for i, c in enumerate(members):
            stop = start + len(own[c])
            table[r, start:stop, :2] = own[c]
            table[r, start:stop, 2] = c
            table[r, start:stop, 3] = range(shared, len(rows[c]))
            ends[r, i], order[c], start = stop - 1, r * ends.shape[1] + i, stop
    tokens, context, text, position = np.moveaxis(table, -1, 0)
    return TextLayout(prefix[:, 0], prefix[:, 1], tokens, context, text, position, ends, order)


def pack(lengths: Sequence[int]) -> list[list[int]]:
    """The texts of these lengths by rows of at most ROW tokens (or of the longest text): the fewest rows that their
    sum asks for, and the narrowest that hold them."""
    widest = max(ROW, *lengths)
    rows = -(-sum(lengths) // widest)
    for room in range(max(-(-sum(lengths) // rows), *lengths), widest + 1):
        packed = _first_fit(lengths, room)
        if len(packed) <= rows:
            break
    return packed


def _first_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """The longest first, each into the first row that has room."""
    rows: list[list[int]] = []
    free: list[int] = []
    for c in sorted(range(len(lengths)), key=lambda c: -lengths[c]):
        r = next((r for r, left in enumerate(free) if left >= lengths[c]), len(rows))
        if r == len(rows):
            rows.append([])
            free.append(room)
        rows[r].append(c)
        free[r] -= lengths[c]
    return rows
