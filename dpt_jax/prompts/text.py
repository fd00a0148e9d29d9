"""The text prompt (CoOp): learned context tokens before, around or after the class name.

Symbols of the paper: C classes, n context tokens, D_t width of the text tower.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from dpt_jax.clip.packing import (
    PackedTexts,
    Text,
    check_lengths,
    pack,
    plain_texts,
    text_of_class,
)
from dpt_jax.clip.tokenizer import Tokenizer
from dpt_jax.errors import UserError


class TextPrompt(nn.Module):
    """Context tokens: (depth, n, D_t), or (depth, C, n, D_t) if each class has its own.

    Row 0 enters with the token embeddings; row l replaces the context tokens before layer l
    (0-based).

    Attributes:
      length: n.
      depth: text layers with context tokens of their own.
      width: D_t.
      classes: C for a context per class, None for one that all share.
      context_init: initializer, see `initializer`.
    """

    length: int
    depth: int
    width: int
    classes: int | None = None
    context_init: Callable[..., jax.Array] = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(self) -> jax.Array:
        own = () if self.classes is None else (self.classes,)
        return self.param("context", self.context_init, (self.depth, *own, self.length, self.width))


def initializer(start: np.ndarray | None) -> Callable[..., jax.Array]:
    """Return N(0, 0.02²), with the context of the first layer set to `start` (n, D_t) if given."""
    normal = nn.initializers.normal(0.02)
    if start is None:
        return normal

    def init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
        return normal(key, shape, dtype).at[0].set(jnp.asarray(start, dtype))

    return init


def context_tokens(words: str, tokenizer: Tokenizer) -> list[int]:
    """Return the tokens of the words that a context starts from; none if they are blank.

    Raise UserError for a placeholder of the class name or a special token.
    """
    if "{" in words or "}" in words:
        raise UserError(
            f"text_prompt.init: {words!r} has a brace: give only the words of the context; "
            "text_prompt.class_position places the class name."
        )
    tokens = tokenizer.encode(text_of_class(words).strip())
    special = [tokenizer.decode([t]) for t in tokens if t in (tokenizer.start, tokenizer.end)]
    if special:
        raise UserError(
            f"text_prompt.init: {words!r} has the special token {special[0]}, which marks the "
            "start or end of a text: remove it."
        )
    return tokens


def prompted_texts(
    classnames: Sequence[str],
    tokenizer: Tokenizer,
    length: int,
    position: str = "end",
    class_specific: bool = False,
    context_length: int = 77,
    fixed: Sequence[int] = (),
) -> list[Text]:
    """Return the texts of the classes with n = length context tokens.

    Args:
      position: "end" [SOS, ctx, NAME, ".", EOT], "middle" (half of the context on either side of
        the name) or "front" [SOS, NAME, ctx, ".", EOT].
      class_specific: whether each class has context rows of its own.
      fixed: tokens between context and name that are not learned, at position "end" only.

    Raises:
      UserError: for a text of more than context_length tokens.
    """
    before = {"end": length, "middle": length // 2, "front": 0}[position]
    texts = []
    for c, name in enumerate(classnames):
        first = c * length if class_specific else 0
        context = [(0, first + i) for i in range(length)]
        name = text_of_class(name)
        tokens = [(t, -1) for t in (*fixed, *tokenizer.encode(name + "."))]
        # At "end" no context follows the name, so it does not matter where the name stops.
        stop = len(tokenizer.encode(name)) if before < length else 0
        words = [*context[:before], *tokens[:stop], *context[before:], *tokens[stop:]]
        texts.append([(tokenizer.start, -1), *words, (tokenizer.end, -1)])
    return check_lengths(texts, classnames, context_length)


def plain_layout(
    texts: Sequence[str], tokenizer: Tokenizer, context_length: int = 77
) -> PackedTexts:
    """Return packed texts without context.  Raise UserError for one over context_length."""
    return pack(plain_texts(texts, tokenizer, context_length))
