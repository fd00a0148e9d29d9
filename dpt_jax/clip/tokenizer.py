"""Byte-pair tokens of CLIP, from a model's own vocabulary or the original one."""

import dataclasses
import html
import pathlib
import tempfile
from typing import Any

import ftfy
from etils import epath

from dpt_jax.clip.vocabulary import (
    END,
    OPENAI_SIZE,
    START,
    Vocabulary,
    check_fits,
    read_vocabulary,
)
from dpt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Encodes text as CLIP does: lower case, byte-pair merges, no special tokens added.

    files: the texts of the files that its vocabulary was read from, by name.
    """

    tokenizer: Any
    start: int
    end: int
    files: dict[str, str]

    def encode(self, text: str) -> list[int]:
        """Return the token ids of the text, without start-of-text and end-of-text.

        Mended as OpenAI's tokenizer does it, where transformers' does not: broken
        Unicode, typographic quotes and ligatures, HTML entities.
        """
        mended = html.unescape(html.unescape(ftfy.fix_text(text)))
        return self.tokenizer.encode(mended, add_special_tokens=False)

    def decode(self, ids: list[int]) -> str:
        """Return the text of some token ids."""
        return self.tokenizer.decode(ids)


def load_tokenizer(
    directory: epath.Path, vocab_size: int = OPENAI_SIZE, end: int | None = None
) -> Tokenizer:
    """Return the tokenizer of a model folder; OpenAI's where it has none and the size is its.

    vocab_size: rows of the model's token embedding. end: the id of the token at
    which the model takes a text's feature, None for the highest id of the text.
    Raise UserError for a vocabulary that is damaged, or not the model's.
    """
    vocabulary = read_vocabulary(directory, vocab_size)
    check_fits(vocabulary, vocab_size, end)
    return make_tokenizer(vocabulary)


def make_tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    """Return the tokenizer of a vocabulary.  Raise UserError where transformers refuses it."""
    from transformers import CLIPTokenizer  # seconds to import, so only where text is tokenised

    with tempfile.TemporaryDirectory() as folder:
        for name, text in vocabulary.files.items():
            (pathlib.Path(folder) / name).write_text(text, encoding="utf-8")
        try:
            tokenizer = CLIPTokenizer.from_pretrained(folder)
            ids = tokenizer.get_vocab()
        except Exception as reason:  # the tokenizers library raises a bare Exception
            raise UserError(f"{vocabulary.source}: no CLIP vocabulary ({reason}).") from reason
    if ids != vocabulary.ids:
        raise UserError(f"{vocabulary.source}: transformers reads another vocabulary from it.")
    start, end = (vocabulary.ids[token] for token in (START, END))
    return Tokenizer(tokenizer, start, end, vocabulary.files)
