"""Token ids are those of OpenAI's tokenizer; the vocabulary of another model is refused."""

import json
import shutil

import pytest
from etils import epath
from transformers import CLIPTokenizerFast

from dpt_jax.clip.pretrained import load_clip
from dpt_jax.clip.tokenizer import PLAIN_FILES, load_tokenizer
from dpt_jax.clip.vocabulary import END, START
from dpt_jax.io import ASSETS
from tests.helpers.commands import refused

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
TINY = ASSETS / "tiny-clip"
SIZE, LAST = 4514, 4513
TEXT = "a drawing of a vegetable"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(epath.Path(tmp_path_factory.mktemp("no-vocabulary-here")))


def test_ids(tokenizer):
    assert {text: tokenizer.encode(text) for text in IDS} == IDS
    # A lower-cased sigma at the end of a word differs from one within it.
    assert tokenizer.encode("ΟΔΟΣ") == tokenizer.encode("οδος") != tokenizer.encode("οδοσ")


@pytest.fixture
def folder(tmp_path):
    """A folder with vocab.json and merges.txt of the tiny CLIP."""
    for name in PLAIN_FILES:
        shutil.copy(TINY / name, tmp_path)
    return epath.Path(tmp_path)


def write_tokenizer_json(folder, change=lambda raw: None):
    """As transformers writes it for a vocab.json and merges.txt."""
    raw = json.loads(CLIPTokenizerFast.from_pretrained(TINY).backend_tokenizer.to_str())
    change(raw)
    (folder / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    return epath.Path(folder)


def test_tokenizer_json_only(tmp_path):
    """With merges as older versions of transformers wrote them; test_weights.py has a newer one."""

    def change(raw):
        raw["model"]["merges"] = [" ".join(pair) for pair in raw["model"]["merges"]]

    own = load_tokenizer(write_tokenizer_json(tmp_path, change), SIZE, LAST)
    assert (own.start, own.end) == (4512, LAST)
    assert own.encode(TEXT) == load_tokenizer(epath.Path(TINY), SIZE).encode(TEXT)


def with_ids(**ids):
    """Change ids of a vocab.json.  ids: None leaves a token out."""

    def change(text):
        changed = {**json.loads(text), **ids}
        return json.dumps({token: x for token, x in changed.items() if x is not None})

    return change


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, None) for name in PLAIN_FILES),
        ("merges.txt", lambda text: text[: len(text) // 2]),
        ("vocab.json", with_ids(**{START: None})),
        ("vocab.json", with_ids(th=None)),
        ("vocab.json", with_ids(**{START: 4511})),
        ("vocab.json", with_ids(**{"!": 4514})),
        ("vocab.json", with_ids(**{"!": LAST, END: 0})),
    ],
)
def test_a_missing_or_damaged_file_is_named(folder, name, damage):
    text = (folder / name).read_text(encoding="utf-8")
    (folder / name).unlink()
    if damage:
        (folder / name).write_text(damage(text), encoding="utf-8")
    refused(str(folder), load_tokenizer, folder, SIZE)


@pytest.mark.parametrize(
    ("key", "value"), [("type", "WordPiece"), ("merges", [["a"]]), ("vocab", [])]
)
def test_tokenizer_of_another_kind(tmp_path, key, value):
    refused(str(SIZE), load_tokenizer, epath.Path(tmp_path), SIZE)  # OpenAI's, for other sizes
    write_tokenizer_json(tmp_path, lambda raw: raw["model"].update({key: value}))
    refused(r"tokenizer\.json", load_tokenizer, epath.Path(tmp_path), SIZE)


def test_end_of_text_of_the_configuration(tmp_path):
    """The text feature is taken at the end token, so the two must agree."""
    for file in TINY.iterdir():
        shutil.copy(file, tmp_path)
    config = json.loads((TINY / "config.json").read_text())
    for end, right in ((LAST, True), (2, True), (None, True), (7, False), (49407, False)):
        config["text_config"]["eos_token_id"] = end
        (tmp_path / "config.json").write_text(json.dumps(config))
        if right:
            assert load_clip(str(tmp_path)).tokenizer.end == LAST
        else:
            refused(str(end), load_clip, str(tmp_path))
