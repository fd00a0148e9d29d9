"""A vocabulary that is not the model's is refused; one that is, is read from any of its files."""

import json
import shutil

import pytest
from etils import epath

from dpt_jax.clip.pretrained import BUNDLED, load_clip
from dpt_jax.clip.tokenizer import load_tokenizer
from dpt_jax.clip.vocabulary import END, PLAIN_FILES, START
from dpt_jax.errors import UserError
from tests.helpers.vocabularies import tokenizer_json

TINY = BUNDLED / "tiny-clip"
SIZE, LAST = 4514, 4513
TEXT = "a drawing of a vegetable"


@pytest.fixture(scope="module")
def plain():
    return load_tokenizer(epath.Path(TINY), SIZE)


@pytest.fixture
def folder(tmp_path):
    """A folder with vocab.json and merges.txt of the tiny CLIP."""
    for name in PLAIN_FILES:
        shutil.copy(TINY / name, tmp_path)
    return epath.Path(tmp_path)


def write_json(folder, change=lambda raw: None):
    raw = tokenizer_json(TINY)
    change(raw)
    (folder / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")


@pytest.mark.parametrize("merges", ["pairs", "texts"])
def test_tokenizer_json_alone(tmp_path, plain, merges):
    """As transformers 5 saves it, and with merges as its older versions wrote them."""

    def change(raw):
        if merges == "texts":
            raw["model"]["merges"] = [" ".join(pair) for pair in raw["model"]["merges"]]

    write_json(tmp_path, change)
    own = load_tokenizer(epath.Path(tmp_path), SIZE, LAST)
    assert (own.start, own.end) == (plain.start, plain.end) == (4512, LAST)
    assert own.encode(TEXT) == plain.encode(TEXT)
    assert list(own.files) == ["tokenizer.json"]


def test_added_token(tmp_path):
    """One that was added after training has an id of its own, as transformers reads it."""

    def change(raw):
        raw["added_tokens"].append({**raw["added_tokens"][0], "id": SIZE, "content": "<thing>"})

    write_json(tmp_path, change)
    own = load_tokenizer(epath.Path(tmp_path), SIZE + 1, LAST)
    assert own.encode("a <thing>") == [*own.encode("a"), SIZE]
    with pytest.raises(UserError, match=f"go up to {SIZE}, but the model has {SIZE} tokens"):
        load_tokenizer(epath.Path(tmp_path), SIZE, LAST)


def test_openais_vocabulary_is_for_models_of_its_size_alone(tmp_path):
    assert load_tokenizer(epath.Path(tmp_path)).end == 49407
    with pytest.raises(UserError, match="has no vocabulary, and its model's has 4514 tokens"):
        load_tokenizer(epath.Path(tmp_path), SIZE)


@pytest.mark.parametrize("missing", PLAIN_FILES)
def test_half_a_vocabulary(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(UserError, match=f"{missing} is missing: .* half a vocabulary"):
        load_tokenizer(folder, SIZE)


def cut(text, at):
    return "\n".join(text.split("\n")[:at])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda text: text[: len(text) // 2], "cut"),
        (lambda text: cut(text, 3000), "no merge makes the token"),
        (lambda text: "", "no merge makes the token"),
        (lambda text: "<html>\n<body>404 not found</body>\n", "HTML"),
        (lambda text: text + "zz zz\n", "is no token"),
        (lambda text: "version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_damaged_merges(folder, make, says):
    file = folder / "merges.txt"
    file.write_text(make(file.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(UserError, match=says) as error:
        load_tokenizer(folder, SIZE)
    assert "merges.txt" in str(error.value)


def drop(*tokens):
    def change(ids):
        for token in tokens:
            del ids[token]

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (drop(START), "startoftext.* is missing"),
        (drop("th"), "'th' is no token"),
        (lambda ids: ids.update({START: 4511}), "an id to several tokens"),
        (lambda ids: ids.update({START: "7"}), "is no vocabulary"),
        (lambda ids: ids.update({"!": -1}), "is no vocabulary"),
        (lambda ids: ids.update({"!": 4514}), "go up to 4514, but the model has 4514"),
        (lambda ids: ids.update({"!": LAST, END: 0}), "has the id 0, but the model takes"),
        (lambda ids: ids.clear(), "is no vocabulary"),
    ],
)
def test_damaged_vocabulary(folder, change, says):
    ids = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    change(ids)
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    with pytest.raises(UserError, match=says) as error:
        load_tokenizer(folder, SIZE)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("type", "WordPiece", "type 'WordPiece', not CLIP's byte pairs"),
        ("end_of_word_suffix", None, "not CLIP's byte pairs"),
        ("merges", None, "model.merges is null"),
        ("merges", [["a"]], "is no merge of two tokens"),
        ("vocab", [], "model.vocab is"),
    ],
)
def test_tokenizer_of_another_kind(tmp_path, key, value, says):
    write_json(tmp_path, lambda raw: raw["model"].update({key: value}))
    with pytest.raises(UserError, match=says):
        load_tokenizer(epath.Path(tmp_path), SIZE)


def test_two_vocabularies_that_differ(folder):
    write_json(folder)
    assert load_tokenizer(folder, SIZE).end == LAST
    ids = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    ids["in"], ids["th"] = ids["th"], ids["in"]
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    with pytest.raises(UserError, match=r"is not the vocabulary of tokenizer\.json"):
        load_tokenizer(folder, SIZE)


def test_end_of_text_of_the_configuration(tmp_path):
    """The text's feature is taken at the end token: where the two disagree, nothing is right."""
    for file in TINY.iterdir():
        shutil.copy(file, tmp_path)
    config = json.loads((TINY / "config.json").read_text())
    for end, right in ((LAST, True), (2, True), (None, True), (7, False), (49407, False)):
        config["text_config"]["eos_token_id"] = end
        (tmp_path / "config.json").write_text(json.dumps(config))
        if right:
            assert load_clip(str(tmp_path)).tokenizer.end == LAST
        else:
            with pytest.raises(UserError, match=f"configuration says {end}"):
                load_clip(str(tmp_path))
