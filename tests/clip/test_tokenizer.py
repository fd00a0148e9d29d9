"""Token ids as OpenAI's own tokenizer gives them; a wrong token costs accuracy and tells nobody."""

import json

import pytest
from etils import epath

from dpt_jax.clip.tokenizer import load_tokenizer
from dpt_jax.clip.vocabulary import PLAIN_FILES, openai_vocabulary, vocabulary_files
from dpt_jax.errors import UserError

# Computed by the tokenizer of the published code.
IDS = {
    "Siberian Husky": [34058, 20421],
    "don't stop": [847, 713, 1691],
    "don’t": [847, 713],
    "McDonnell Douglas DC-9-30's": [34360, 10065, 2743, 268, 280, 268, 274, 271, 568],
    "two-toned, 1/2 FULL": [1237, 268, 29426, 267, 272, 270, 273, 1476],
    "x (C) 3.5mm": [343, 263, 322, 264, 274, 269, 276, 2848],
    "  two   spaces ": [1237, 9006],
    "tab\there": [14724, 763],
    "naïve Ænima": [1097, 35689, 563, 42495, 42586],
    "hello…world": [3306, 959, 1002],
    "ﬁnger": [8895],
    "a&amp;b": [320, 261, 321],
    "名前": [41673, 235, 161, 231, 491],
    "Ⅳ ½": [158, 227, 367, 33613],
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(epath.Path(tmp_path_factory.mktemp("no-vocabulary-here")))


@pytest.mark.parametrize("text", IDS)
def test_ids(tokenizer, text):
    assert tokenizer.encode(text) == IDS[text]


def test_special_tokens(tokenizer):
    assert (tokenizer.start, tokenizer.end) == (49406, 49407)


def test_own_vocabulary_of_a_model(tmp_path):
    """A cut vocabulary spells rare words in more pieces; its ids stay within it."""
    for name, text in vocabulary_files(*openai_vocabulary(100)).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    small = load_tokenizer(epath.Path(tmp_path))
    size = len(json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8")))
    assert size == 512 + 100 + 2
    assert len(small.encode("husky")) > 1
    assert max(small.encode("siberian husky 名前")) < size - 2
    assert small.end == size - 1


def test_damaged_vocabulary_is_named(tmp_path):
    for name in PLAIN_FILES:
        (tmp_path / name).write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"vocab\.json is not valid JSON"):
        load_tokenizer(epath.Path(tmp_path))
