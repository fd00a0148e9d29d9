"""Byte-pair tokens of CLIP, from a model's own vocabulary or the original one."""

import dataclasses
import gzip
import html
import importlib.resources
import json
import pathlib
import tempfile
from typing import Any

import ftfy
from etils import epath

from dpt_jax.errors import UserError

START, END = "<|startoftext|>", "<|endoftext|>"
VOCABULARY_FILES = ("vocab.json", "merges.txt")


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Encodes text as CLIP does: lower case, byte-pair merges, no special tokens added.

    files: the vocabulary it was made from, {"vocab.json": text, "merges.txt": text}.
    """

    tokenizer: Any
    start: int
    end: int
    files: dict[str, str]

    def encode(self, text: str) -> list[int]:
        """Token ids of the text, without start-of-text and end-of-text.

        Mended as OpenAI's tokenizer does it, where transformers' does not: broken
        Unicode, typographic quotes and ligatures, HTML entities.
        """
        mended = html.unescape(html.unescape(ftfy.fix_text(text)))
        return self.tokenizer.encode(mended, add_special_tokens=False)

    def decode(self, ids: list[int]) -> str:
        """The text of some token ids."""
        return self.tokenizer.decode(ids)


def load_tokenizer(directory: epath.Path) -> Tokenizer:
    """The tokenizer of a model directory that has vocab.json and merges.txt, else OpenAI's."""
    if all((directory / name).exists() for name in VOCABULARY_FILES):
        files = {name: _read(directory / name) for name in VOCABULARY_FILES}
    else:
        files = vocabulary_files(*openai_vocabulary())
    from transformers import CLIPTokenizer  # seconds to import, so only where text is tokenised

    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            (pathlib.Path(folder) / name).write_text(text, encoding="utf-8")
        try:
            tokenizer = CLIPTokenizer.from_pretrained(folder)
        except Exception as reason:  # the tokenizers library raises a bare Exception
            raise UserError(
                f"{directory}: {' and '.join(files)} are no CLIP vocabulary ({reason})."
            ) from reason
    start, end = (tokenizer.convert_tokens_to_ids(t) for t in (START, END))
    return Tokenizer(tokenizer, start, end, files)


def _read(file: epath.Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as reason:
        raise UserError(f"{file} cannot be read as text ({reason}); it is damaged.") from reason


def vocabulary_files(vocab: dict[str, int], merges: list[str]) -> dict[str, str]:
    """vocab.json and merges.txt as the Hugging Face hub has them."""
    return {
        "vocab.json": json.dumps(vocab, ensure_ascii=False),
        "merges.txt": "#version: 0.2\n" + "\n".join(merges) + "\n",
    }


def openai_vocabulary(merge_count: int = 48894) -> tuple[dict[str, int], list[str]]:
    """CLIP's vocabulary {token: id} and its merges in order.

    256 byte symbols, the same ending a word, one token a merge, start and end.
    Fewer merges give a smaller vocabulary of the same kind.
    """
    source = importlib.resources.files("dpt_jax") / "assets" / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(source.read_bytes()).decode("utf-8").split("\n")
    merges = lines[1 : 1 + merge_count]
    visible = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    symbols = [chr(b) for b in visible] + [chr(256 + i) for i in range(256 - len(visible))]
    tokens = (
        symbols
        + [s + "</w>" for s in symbols]
        + ["".join(m.split()) for m in merges]
        + [START, END]
    )
    return {token: i for i, token in enumerate(tokens)}, merges
