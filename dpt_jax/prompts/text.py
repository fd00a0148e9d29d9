"""The text prompt (CoOp): learned context tokens before, around or after the class name.

Symbols of the paper: C classes, n context tokens, D_t width of the text tower.
"""

import itertools
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
# Tokens of packed texts a row: enough to leave little padding, few enough for cheap attention.
ROW = 64


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


def as_words(text: str) -> str:
    """Return a class name, or a text with one in it, as CLIP reads it: underscores are spaces.

    Every text of a class goes through here, so that all methods read the same name.
    """
    return text.replace("_", " ")


def context_tokens(words: str, tokenizer: Tokenizer) -> list[int]:
    """Return the tokens that a context starts from, however many a word has; none if it is blank.

    Raise UserError for what stands for a class name or for a special token.
    """
    if "{" in words or "}" in words:
        raise UserError(
            f"text_prompt.init: {words!r} has a brace: give the words of the context alone. The "
            "class name comes after them, or where text_prompt.class_position puts it."
        )
    tokens = tokenizer.encode(as_words(words).strip())
    special = [tokenizer.decode([t]) for t in tokens if t in (tokenizer.start, tokenizer.end)]
    if special:
        raise UserError(
            f"text_prompt.init: {words!r} has the special token {special[0]}, which marks the "
            "start or the end of a text: leave it out."
        )
    return tokens


def initializer(start: np.ndarray | None) -> Callable[..., jax.Array]:
    """Return N(0, 0.02²), with the input layer's context set to `start` (n, D_t) if given."""
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
    fixed: Sequence[int] = (),
) -> TextLayout:
    """Return the texts "ctx NAME." with n = length context tokens.

    fixed: tokens that stand as they are between context and name, at position "end" alone.
    position: "end" [SOS, ctx, NAME, ".", EOT], "middle" (half of the context
    on either side of the name) or "front" [SOS, NAME, ctx, ".", EOT].
    Raise UserError for an unknown position or a text over context_length.
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
        name = as_words(name)
        tokens = [(t, -1) for t in (*fixed, *tokenizer.encode(name + "."))]
        # "end" puts no context after the name, so where the name stops does not matter there.
        stop = len(tokenizer.encode(name)) if before < length else 0
        words = [*context[:before], *tokens[:stop], *context[before:], *tokens[stop:]]
        rows.append([(tokenizer.start, -1), *words, (tokenizer.end, -1)])
    return _layout(rows, classnames, context_length)


def plain_layout(
    texts: Sequence[str], tokenizer: Tokenizer, context_length: int = 77
) -> TextLayout:
    """Return ordinary texts, without context.  Raise UserError for one over context_length."""
    rows = [
        [(t, -1) for t in (tokenizer.start, *tokenizer.encode(as_words(text)), tokenizer.end)]
        for text in texts
    ]
    return _layout(rows, texts, context_length)


def same_texts(layout: TextLayout) -> list[list[int]]:
    """Return the classes, in groups, whose texts are the same to CLIP, such as "A" and "a".

    layout: of host arrays.
    """
    text = np.ravel(layout.text)
    by_text = np.argsort(text, kind="stable")
    starts = np.searchsorted(text[by_text], np.arange(len(layout.order) + 1))
    places = np.stack([layout.tokens, layout.context], -1).reshape(-1, 2)[by_text]
    groups: dict[bytes, list[int]] = {}
    for c, (start, stop) in enumerate(itertools.pairwise(starts)):
        groups.setdefault(places[start:stop].tobytes(), []).append(c)
    return [group for group in groups.values() if len(group) > 1]


def _layout(rows: list[Row], names: Sequence[str], context_length: int) -> TextLayout:
    for name, row in zip(names, rows, strict=True):
        if len(row) > context_length:
            raise UserError(
                f"{name!r} makes a text of {len(row)} tokens, but CLIP's text tower takes "
                f"{context_length}: shorten the name, the template or text_prompt.length."
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
    """Return the texts of these lengths by rows of at most ROW tokens, or of the longest text.

    They are as few rows as the sum of the lengths allows, and the narrowest that hold them.
    """
    widest = max(ROW, *lengths)
    rows = -(-sum(lengths) // widest)
    for room in range(max(-(-sum(lengths) // rows), *lengths), widest + 1):
        packed = _first_fit(lengths, room)
        if len(packed) <= rows:
            break
    return packed


def _first_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Return rows that are filled with the longest text first, each into the first with room."""
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
