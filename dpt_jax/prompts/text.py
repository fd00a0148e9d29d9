"""The text prompt: learned context tokens before, around or after the class name (CoOp).

Symbols: B images, C classes, n context tokens, D_t width of the text tower, E joint embedding,
z normalised image features of frozen CLIP.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from dpt_jax.clip.blocks import Array
from dpt_jax.clip.packing import PackedTexts, Text, check_lengths, pack, plain_texts, text_of_class
from dpt_jax.clip.tokenizer import Tokenizer
from dpt_jax.errors import UserError
from dpt_jax.prompts import linear

REDUCTION = 16  # the hidden layer of the meta-net has E // 16 units


class TextPrompt(nn.Module):
    """Context tokens: (depth, n, D_t), or (depth, C, n, D_t) if each class has its own.

    Row 0 enters with the token embeddings; row l replaces the context tokens before layer l
    (0-based).
    """

    length: int  # n
    depth: int  # text layers with context tokens of their own
    width: int  # D_t
    classes: int | None = None  # C for a context per class, None for one that all share

    @nn.compact
    def __call__(self) -> Array:
        own = () if self.classes is None else (self.classes,)
        shape = self.depth, *own, self.length, self.width
        return self.param("context", nn.initializers.normal(0.02), shape)


class MetaNet(nn.Module):
    """CoCoOp's offset of the first layer's context tokens for each image, in float32.

    π = W₂ relu(W₁ z + b₁) + b₂: from z (B, E) to (B, D_t).
    """

    embed_dim: int
    text_width: int

    @nn.compact
    def __call__(self, features: Array) -> Array:
        hidden = self.embed_dim // REDUCTION
        down = linear(hidden, self.embed_dim, "linear1", jnp.float32, bias=True)
        up = linear(self.text_width, hidden, "linear2", jnp.float32, bias=True)
        return up(jax.nn.relu(down(features)))


def context_tokens(words: str, tokenizer: Tokenizer) -> list[int]:
    """Return the tokens of the words that a context starts from; none if they are blank.

    Raise UserError for a placeholder of the class name or a special token.
    """
    tokens = tokenizer.encode(text_of_class(words).strip())
    if {"{", "}"} & {*words} or {tokenizer.start, tokenizer.end} & {*tokens}:
        raise UserError(
            f"text_prompt.init: {words!r} has a brace or a special token: give only the words of "
            "the context; text_prompt.class_position places the class name."
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
