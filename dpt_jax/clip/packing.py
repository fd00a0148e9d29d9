"""Packed texts: many short texts in few rows, with their shared prefix encoded once.

Shapes: C texts, R rows of packed texts, T tokens of a row, P tokens of the shared prefix.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dpt_jax.clip.tokenizer import Tokenizer
from dpt_jax.errors import UserError

Array = np.ndarray | jax.Array
Text = list[tuple[int, int]]  # one text: (token id, row of the learned context or -1) by position
# Tokens of a row: enough to leave little padding, few enough for cheap attention.
ROW_TOKENS = 64


class PackedTexts(NamedTuple):
    """C texts, split into a prefix that they share and their own tokens.

    Attention is causal, so the prefix is the same for every text and is encoded once; the own
    tokens attend to it as extra key/value tokens. Several texts share a row, where each attends
    only to itself, so the cost depends on the number of tokens, not on the longest text.

    A position holds a token id or, if `*context` is not -1, that row of the learned context. If
    each class has its own context, these are the rows of all classes, one class after the other.
    """

    prefix_tokens: Array  # (P,) int32
    prefix_context: Array  # (P,) int32, -1: a token id
    tokens: Array  # (R, T) int32
    context: Array  # (R, T) int32, -1: a token id
    segment_ids: Array  # (R, T) int32, the text that a position belongs to, -1: padding
    position_ids: Array  # (R, T) int32, its position in that text, prefix included
    eot_positions: Array  # (R, Q) int32, of the row's end-of-text tokens, padded with 0
    eot_index: Array  # (C,) int32, where each text is in the flattened eot_positions


def text_of_class(name: str) -> str:
    """Return a class name, or a text with one, as CLIP reads it: underscores are spaces."""
    return name.replace("_", " ")


def plain_texts(texts: Sequence[str], tokenizer: Tokenizer, context_length: int) -> list[Text]:
    """Return ordinary texts, without context.  Raise UserError for one over context_length."""
    found = [
        [(t, -1) for t in (tokenizer.start, *tokenizer.encode(text_of_class(text)), tokenizer.end)]
        for text in texts
    ]
    return check_lengths(found, texts, context_length)


def check_lengths(texts: list[Text], names: Sequence[str], context_length: int) -> list[Text]:
    """Return the texts.  Raise UserError naming one that is longer than context_length."""
    for name, text in zip(names, texts, strict=True):
        if len(text) > context_length:
            raise UserError(
                f"{name!r} has {len(text)} tokens, but CLIP's text tower takes "
                f"{context_length}: shorten the name, the template or text_prompt.length."
            )
    return texts


def pack(texts: Sequence[Text], share: bool = True) -> PackedTexts:
    """Pack texts into the fewest rows, with the longest prefix that they share.

    share: whether texts share a prefix. With dropout they do not, since each has its own masks.
    """
    # Each text keeps at least its end-of-text token.
    shared, longest = 0, min(map(len, texts)) - 1 if share else 0
    for column in zip(*texts, strict=False):
        if shared == longest or len(set(column)) > 1:
            break
        shared += 1
    rows = assign_rows([len(text) - shared for text in texts])
    width = max(sum(len(texts[c]) - shared for c in row) for row in rows)
    return _layout(texts, shared, rows, width)


def pack_one_a_row(texts: Sequence[Text], rows: int, width: int) -> PackedTexts:
    """Pack each text into a row of its own, padded to `rows` rows of `width` tokens.

    Only the start token is shared. One compiled program serves all texts of these sizes.
    """
    own = [[c] if c < len(texts) else [] for c in range(rows)]
    # One end-of-text token a row, padding included.
    return _layout(texts, 1, own, width)._replace(eot_index=np.arange(rows, dtype=np.int32))


def _layout(
    texts: Sequence[Text], shared: int, rows: Sequence[Sequence[int]], width: int
) -> PackedTexts:
    prefix = np.asarray(texts[0][:shared], np.int32).reshape(shared, 2)
    table = np.tile(np.array([0, -1, -1, 0], np.int32), (len(rows), width, 1))
    ends = np.zeros((len(rows), max(map(len, rows))), np.int32)
    index = np.zeros(len(texts), np.int32)
    for r, row in enumerate(rows):
        start = 0
        for i, c in enumerate(row):
            stop = start + len(texts[c]) - shared
            table[r, start:stop, :2] = texts[c][shared:]
            table[r, start:stop, 2] = c
            table[r, start:stop, 3] = range(shared, len(texts[c]))
            ends[r, i], index[c], start = stop - 1, r * ends.shape[1] + i, stop
    tokens, context, segments, positions = np.moveaxis(table, -1, 0)
    return PackedTexts(
        prefix[:, 0], prefix[:, 1], tokens, context, segments, positions, ends, index
    )


def assign_rows(lengths: Sequence[int]) -> list[list[int]]:
    """Return the texts of each row: rows of at most ROW_TOKENS tokens, or of the longest text.

    As few rows as the total length allows, and the narrowest that fit. Each text, longest first,
    is in the first row with enough space.
    """
    widest = max(ROW_TOKENS, *lengths)
    fewest = -(-sum(lengths) // widest)
    for width in range(max(-(-sum(lengths) // fewest), *lengths), widest + 1):
        rows: list[list[int]] = []
        free: list[int] = []
        for c in sorted(range(len(lengths)), key=lambda c: -lengths[c]):
            r = next((r for r, left in enumerate(free) if left >= lengths[c]), len(rows))
            if r == len(rows):
                rows.append([])
                free.append(width)
            rows[r].append(c)
            free[r] -= lengths[c]
        if len(rows) <= fewest:
            break
    return rows


def local_rows(texts: PackedTexts, axis: str) -> PackedTexts:
    """Return this device's share of the rows along a mapped axis.

    eot_index still indexes all rows.
    """
    devices, device = jax.lax.axis_size(axis), jax.lax.axis_index(axis)
    rows = -(-texts.tokens.shape[0] // devices)

    def own(x: Array, padding: int) -> jax.Array:
        padded = jnp.pad(x, ((0, rows * devices - x.shape[0]), (0, 0)), constant_values=padding)
        return jax.lax.dynamic_slice_in_dim(padded, device * rows, rows)

    return texts._replace(
        tokens=own(texts.tokens, 0),
        context=own(texts.context, -1),
        segment_ids=own(texts.segment_ids, -1),
        position_ids=own(texts.position_ids, 0),
        eot_positions=own(texts.eot_positions, 0),
    )
