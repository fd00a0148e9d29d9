"""Byte-pair tokens of CLIP, from a model's own vocabulary or OpenAI's."""

import dataclasses
import functools
import html
import json
import pathlib
import tempfile
from typing import Any

import ftfy
from etils import epath

from dpt_jax.clip.vocabulary import END, OPENAI_SIZE, START, WORD_END, openai_vocabulary
from dpt_jax.errors import UserError
from dpt_jax.io import reading, refuse_stand_in

# transformers 5 writes only the first; earlier versions and OpenAI's conversions, the others.
TOKENIZER_FILE = "tokenizer.json"
PLAIN_FILES = ("vocab.json", "merges.txt")
VOCABULARY_FILES = (TOKENIZER_FILE, *PLAIN_FILES)


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Encodes text as OpenAI's tokenizer does, without adding special tokens.

    Attributes:
      tokenizer: transformers' CLIPTokenizer.
      start: id of the start-of-text token.
      end: id of the end-of-text token.
      file: the text of its tokenizer.json.
    """

    tokenizer: Any
    start: int
    end: int
    file: str

    def encode(self, text: str) -> list[int]:
        """Return the token ids of the text, without start-of-text and end-of-text.

        As in OpenAI's code, broken Unicode, typographic quotes, ligatures and HTML entities are
        repaired, and the text is lower-cased as a whole: a Greek sigma depends on its position.
        """
        clean = html.unescape(html.unescape(ftfy.fix_text(text))).lower()
        return self.tokenizer.encode(clean, add_special_tokens=False)

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids."""
        return self.tokenizer.decode(ids)


def load_tokenizer(
    directory: epath.Path, vocab_size: int = OPENAI_SIZE, end: int | None = None
) -> Tokenizer:
    """Return the tokenizer of a model folder, OpenAI's if the folder has none and the size fits.

    Args:
      directory: the model folder.
      vocab_size: rows of the model's token embedding.
      end: id of the token at which the text feature is taken; None for the highest id of a text.

    Raises:
      UserError: if the vocabulary is damaged or does not fit the model.
    """
    names = [name for name in VOCABULARY_FILES if (directory / name).exists()]
    if not names and vocab_size != OPENAI_SIZE:
        raise UserError(
            f"{directory} has no vocabulary, and OpenAI's has {OPENAI_SIZE} tokens but the "
            f"model has {vocab_size}: add its {' and '.join(PLAIN_FILES)}, or its {TOKENIZER_FILE}."
        )
    tokenizer = _read(directory, names) if names else openai_tokenizer()
    source = directory / names[0] if names else "OpenAI's vocabulary"
    highest = max(tokenizer.tokenizer.get_vocab().values())
    wanted = vocab_size - 1 if end is None else end
    if highest >= vocab_size or tokenizer.end != wanted:
        raise UserError(
            f"{source}: token ids go up to {highest} and {END} is {tokenizer.end}, but the model "
            f"has {vocab_size} tokens and takes the text feature at {wanted}."
        )
    return tokenizer


def _read(directory: epath.Path, names: list[str]) -> Tokenizer:
    """Return the tokenizer of the vocabulary files in a folder."""
    from transformers import CLIPTokenizer  # a second to import

    names = names[:1] if TOKENIZER_FILE in names else names
    with tempfile.TemporaryDirectory(prefix="dpt_jax-") as copies:
        for name in names:
            refuse_stand_in(directory / name)
            (pathlib.Path(copies) / name).write_bytes((directory / name).read_bytes())
        with reading(directory / names[-1], "CLIP's vocabulary"):
            return _whole(CLIPTokenizer.from_pretrained(copies))


@functools.cache
def openai_tokenizer() -> Tokenizer:
    """Return the tokenizer of OpenAI's CLIPs."""
    from transformers import CLIPTokenizer

    vocabulary, merges = openai_vocabulary()
    pairs: Any = [tuple(merge.split(" ")) for merge in merges]
    return _whole(CLIPTokenizer(vocab=vocabulary, merges=pairs))


def _whole(tokenizer: Any) -> Tokenizer:
    """Return a Tokenizer that normalises as OpenAI's code does.

    Raises:
      ValueError: if a token is missing, or unreachable as with a truncated merges.txt.
    """
    file = tokenizer.backend_tokenizer.to_str()
    # CLIPTokenizer lower-cases letter by letter, and composes characters only after that.
    tokenizer.backend_tokenizer.normalizer = None
    vocabulary, merges = tokenizer.get_vocab(), json.loads(file)["model"]["merges"]
    if len(set(vocabulary.values())) != len(vocabulary):
        raise ValueError("two tokens have the same id")
    reached = {first + second for first, second in merges} | {*tokenizer.added_tokens_encoder}
    for token in vocabulary.keys() - reached:
        if len(token.removesuffix(WORD_END)) > 1:
            raise ValueError(f"it is truncated or damaged: no merge makes the token {token!r}")
    return Tokenizer(tokenizer, vocabulary[START], vocabulary[END], file)
