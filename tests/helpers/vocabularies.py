"""Vocabularies as other libraries save them."""

import functools
import json
import pathlib
import tempfile

from transformers import CLIPTokenizerFast


def tokenizer_json(folder: pathlib.Path) -> dict:
    """The tokenizer.json that transformers writes for a vocab.json and merges.txt."""
    return json.loads(_text(folder))


@functools.cache
def _text(folder: pathlib.Path) -> str:
    with tempfile.TemporaryDirectory() as saved:
        CLIPTokenizerFast.from_pretrained(folder).save_pretrained(saved)
        return (pathlib.Path(saved) / "tokenizer.json").read_text(encoding="utf-8")
