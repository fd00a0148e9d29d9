"""The text prompt (CoOp): learned context tokens in front of, around or behind the class name.

Symbols of the paper: C classes, n context tokens, D_t width of the text tower.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dpt_jax.clip.model import TextLayout
from dpt_jax.clip.tokenizer import Tokenizer
from dpt_jax.errors import UserError

POSITIONS = ("end", "middle", "front")
Row = list[tuple[int, int]]  # one text as (token id, context row or -1) a position


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
            raise UserError(f"text_prompt.init: {word!r} is {len(tokens)} tokens; use words that are one token each.")
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
        raise UserError(f"text_prompt.class_position: {position!r} is not one of {', '.join(POSITIONS)}.")
    before = {"end": length, "middle": length // 2, "front": 0}[position]
    context = [(0, i) for i in range(length)]
    rows = []
    for name in classnames:
        name = name.replace("_", " ")
        tokens = [(t, -1) for t in tokenizer.encode(name + ".")]
        # "end" puts no context behind the name, so where the name stops does not matter there.
        stop = len(tokenizer.encode(name)) if before < length else 0
        words = [*context[:before], *tokens[:stop], *context[before:], *tokens[stop:]]
        rows.append([(tokenizer.start, -1), *words, (tokenizer.end, -1)])
    return _layout(rows, classnames, context_length, class_specific)


def plain_layout(texts: Sequence[str], tokenizer: Tokenizer, context_length: int = 77) -> TextLayout:
    """Ordinary texts, without context.  Raises UserError for one over context_length."""
    rows = [[(t, -1) for t in (tokenizer.start, *tokenizer.encode(text), tokenizer.end)] for text in texts]
    return _layout(rows, texts, context_length, class_specific=False)


def _layout(rows: list[Row], names: Sequence[str], context_length: int, class_specific: bool) -> TextLayout:
    for name, row in zip(names, rows, strict=True):
        if len(row) > context_length:
            raise UserError(
                f"{name!r} makes a text of {len(row)} tokens, but CLIP's text tower takes {context_length}: "
                "shorten the name, the template or text_prompt.length."
            )
    # What all texts begin with is encoded once; each keeps at least its end-of-text token.
    shared, shortest = 0, min(map(len, rows))
    for column in zip(*rows, strict=False):
        if shared == shortest - 1 or len(set(column)) > 1 or (class_specific and column[0][1] >= 0):
            break
        shared += 1
    own = max(map(len, rows)) - shared
    table = np.tile(np.array([0, -1], np.int32), (len(rows), own, 1))
    for i, row in enumerate(rows):
        table[i, : len(row) - shared] = row[shared:]
    prefix = np.asarray(rows[0][:shared], np.int32).reshape(shared, 2)
    end = np.asarray([len(row) - shared - 1 for row in rows], np.int32)
    return TextLayout(prefix[:, 0], prefix[:, 1], table[..., 0], table[..., 1], end)
