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

from dpt_jax.clip.config import read_json, section
from dpt_jax.clip.vocabulary import END, OPENAI_SIZE, START, WORD_END, openai_vocabulary
from dpt_jax.errors import UserError
from dpt_jax.io import reading, refuse_stand_in

# transformers 5 writes the first one only, earlier versions and OpenAI's conversions the others.
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
        repaired, and the whole text is lowered at once: a Greek capital sigma depends on its place.
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
    if not names:
        tokenizer, source = _openai_tokenizer(), "OpenAI's vocabulary"
    else:
        source = str(directory / names[0])
        tokenizer = _tokenizer(_read(directory, names), source)
    _check_fits(tokenizer, vocab_size, end, source)
    return tokenizer


@functools.cache
def _openai_tokenizer() -> Tokenizer:
    return _tokenizer(make_tokenizer(*openai_vocabulary()), "OpenAI's vocabulary")


def _tokenizer(tokenizer: Any, source: str) -> Tokenizer:
    """Return a CLIPTokenizer that normalises as OpenAI's code.  Raise UserError if it is cut."""
    file = tokenizer.backend_tokenizer.to_str()
    # CLIPTokenizer lowers letter by letter, and composes characters after that, not before.
    tokenizer.backend_tokenizer.normalizer = None
    vocabulary, merges = tokenizer.get_vocab(), json.loads(file)["model"]["merges"]
    _check_whole(vocabulary, merges, set(tokenizer.added_tokens_encoder), source)
    return Tokenizer(tokenizer, vocabulary[START], vocabulary[END], file)


def make_tokenizer(vocabulary: dict[str, int], merges: list[str]) -> Any:
    """Return transformers' CLIPTokenizer of a vocabulary and its merges, "a b" each."""
    from transformers import CLIPTokenizer  # a second to import

    pairs: Any = [tuple(merge.split(" ")) for merge in merges]
    return CLIPTokenizer(vocab=vocabulary, merges=pairs)


def _read(directory: epath.Path, names: list[str]) -> Any:
    """Return transformers' CLIPTokenizer of the vocabulary files in a folder."""
    from transformers import CLIPTokenizer

    if TOKENIZER_FILE in names:
        names = [TOKENIZER_FILE]
        file = directory / TOKENIZER_FILE
        model = section(read_json(file), "model", f"{file}: ")
        if model.get("type", "BPE") != "BPE" or model.get("end_of_word_suffix") != WORD_END:
            raise UserError(
                f"{file} is not a tokenizer of CLIP's kind, byte pairs with {WORD_END}."
            )
    elif missing := [name for name in PLAIN_FILES if name not in names]:
        raise UserError(f"{directory / missing[0]} is missing beside {names[0]}.")
    with tempfile.TemporaryDirectory(prefix="dpt_jax-") as copies:
        for name in names:
            refuse_stand_in(directory / name)
            (pathlib.Path(copies) / name).write_bytes((directory / name).read_bytes())
        with reading(directory / names[-1], "CLIP's vocabulary"):
            return CLIPTokenizer.from_pretrained(copies)


def _check_whole(
    vocabulary: dict[str, int], merges: list[list[str]], added: set[str], source: str
) -> None:
    """Raise UserError if a token cannot be reached, as after a cut merges.txt, or is missing."""
    for token in (START, END):
        if token not in vocabulary:
            raise UserError(f"{source}: the token {token} is missing.")
    if len(set(vocabulary.values())) != len(vocabulary):
        raise UserError(f"{source}: two tokens have the same id.")
    reached = added | {first + second for first, second in merges}
    for token in vocabulary.keys() - reached:
        if len(token.removesuffix(WORD_END)) > 1:
            raise UserError(f"{source} is cut or damaged: no merge makes the token {token!r}.")


def _check_fits(tokenizer: Tokenizer, vocab_size: int, end: int | None, source: str) -> None:
    """Raise UserError if the vocabulary is not the model's: see load_tokenizer."""
    highest = max(tokenizer.tokenizer.get_vocab().values())
    if highest >= vocab_size:
        raise UserError(
            f"{source}: token ids go up to {highest}, but the model has {vocab_size} tokens."
        )
    if tokenizer.end != (vocab_size - 1 if end is None else end):
        where = f"its configuration says {end}" if end is not None else "takes the highest id"
        raise UserError(
            f"{source}: {END} has the id {tokenizer.end} of {vocab_size}, but the model takes the "
            f"text feature at another one ({where})."
        )
