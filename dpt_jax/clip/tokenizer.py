"""Byte-pair tokens of CLIP, from a model's own vocabulary or OpenAI's."""

import dataclasses
import functools
import html
from collections.abc import Sequence
from typing import Any

import ftfy
from etils import epath

from dpt_jax.clip.config import read_json
from dpt_jax.clip.vocabulary import END, OPENAI_SIZE, START, WORD_END, openai_vocabulary
from dpt_jax.errors import UserError
from dpt_jax.io import reading

# transformers 5 writes only the first. Earlier versions and OpenAI's conversions have the others.
TOKENIZER_FILE = "tokenizer.json"
PLAIN_FILES = ("vocab.json", "merges.txt")
VOCABULARY_FILES = (TOKENIZER_FILE, *PLAIN_FILES)


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Encodes text as OpenAI's tokenizer does, without adding special tokens."""

    tokenizer: Any  # transformers' CLIPTokenizer
    start: int  # id of start-of-text
    end: int
    file: str  # the text of its tokenizer.json

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

    vocab_size: rows of the model's token embedding. end: id of the token at which the text feature
    is taken; None for the highest id of a text.
    """
    names = [name for name in VOCABULARY_FILES if (directory / name).exists()]
    tokenizer = _read(directory, names) if names else openai_tokenizer()
    highest = max(tokenizer.tokenizer.get_vocab().values())
    wanted = vocab_size - 1 if end is None else end
    if highest >= vocab_size or tokenizer.end != wanted:
        source = (
            directory / names[0] if names else f"OpenAI's vocabulary, since {directory} has none"
        )
        raise UserError(
            f"{source}: token ids go up to {highest} and {END} is {tokenizer.end}, but the model "
            f"has {vocab_size} tokens and takes the text feature at {wanted}: add its "
            f"{TOKENIZER_FILE}, or its {' and '.join(PLAIN_FILES)}."
        )
    return tokenizer


def _read(directory: epath.Path, names: list[str]) -> Tokenizer:
    """Return the tokenizer of the vocabulary files in a folder."""
    names = names[:1] if TOKENIZER_FILE in names else names
    with reading(directory / names[-1], "CLIP's vocabulary"):
        if TOKENIZER_FILE in names:
            raw = read_json(directory / TOKENIZER_FILE)
            model = raw["model"]
            if model["type"] != "BPE":
                raise ValueError(f"its type is {model['type']!r}, not 'BPE'")
            added = {token["content"]: token["id"] for token in raw["added_tokens"]}
            return _checked({**model["vocab"], **added}, model["merges"])
        vocabulary = read_json(directory / PLAIN_FILES[0])
        lines = (directory / PLAIN_FILES[1]).read_text(encoding="utf-8").splitlines()
        merges = [line for line in lines if line and not line.startswith("#version")]
        return _checked(vocabulary, merges)


@functools.cache
def openai_tokenizer() -> Tokenizer:
    """Return the tokenizer of OpenAI's CLIPs."""
    return _checked(*openai_vocabulary())


def _checked(vocabulary: dict[str, int], merges: Sequence[str | list[str]]) -> Tokenizer:
    """Return a Tokenizer that normalises as OpenAI's code does.

    Raises:
      ValueError: if a token is missing, or unreachable as with a truncated merges.txt.
    """
    from transformers import CLIPTokenizer  # a second to import

    pairs: Any = [tuple(merge.split() if isinstance(merge, str) else merge) for merge in merges]
    reached = {first + second for first, second in pairs} | {START, END}
    for token in vocabulary.keys() - reached:
        if len(token.removesuffix(WORD_END)) > 1:
            raise ValueError(f"it is truncated or damaged: no merge makes the token {token!r}")
    if len(set(vocabulary.values())) != len(vocabulary):
        raise ValueError("two tokens have the same id")
    start, end = vocabulary[START], vocabulary[END]
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=pairs)
    file = tokenizer.backend_tokenizer.to_str()
    # CLIPTokenizer lower-cases letter by letter, and composes characters only after that.
    tokenizer.backend_tokenizer.normalizer = None
    return Tokenizer(tokenizer, start, end, file)
