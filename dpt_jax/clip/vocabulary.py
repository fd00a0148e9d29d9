"""A model's vocabulary: the files it comes in, and that they are whole and the model's own."""

import gzip
import importlib.resources
import json
from typing import Any, NamedTuple

from etils import epath

from dpt_jax.clip.json_files import Section, parse_json, read_text
from dpt_jax.errors import UserError

START, END = "<|startoftext|>", "<|endoftext|>"
# transformers 5 writes the first one alone, earlier ones and OpenAI's conversions the other two.
TOKENIZER_FILE = "tokenizer.json"
PLAIN_FILES = ("vocab.json", "merges.txt")
VOCABULARY_FILES = (TOKENIZER_FILE, *PLAIN_FILES)
OPENAI_SIZE = 49408
WORD_END = "</w>"


class Vocabulary(NamedTuple):
    """Tokens and their ids, added ones too, and the merges in their order.

    files: the texts of the files that it was read from, by name. source: what to call it in a
    message.
    """

    ids: dict[str, int]
    merges: list[tuple[str, str]]
    added: frozenset[str]
    files: dict[str, str]
    source: str


def read_vocabulary(folder: epath.Path, vocab_size: int) -> Vocabulary:
    """Return the vocabulary of a model folder; OpenAI's where none is given and the size is its.

    Raise UserError for half a vocabulary, a damaged one, and none for a model of another size.
    """
    there = [name for name in VOCABULARY_FILES if (folder / name).exists()]
    if not there:
        if vocab_size != OPENAI_SIZE:
            raise UserError(
                f"{folder} has no vocabulary, and its model's has {vocab_size} tokens, so it is "
                f"not OpenAI's: put its {TOKENIZER_FILE}, or {' and '.join(PLAIN_FILES)}, there."
            )
        return _from_plain(vocabulary_files(*openai_vocabulary()), folder)
    files = {name: read_text(folder / name) for name in there}
    if TOKENIZER_FILE in files:
        return _from_tokenizer_json(files, folder)
    for name in PLAIN_FILES:
        if name not in files:
            raise UserError(f"{folder / name} is missing: {there[0]} is half a vocabulary.")
    return _from_plain(files, folder)


def _from_plain(files: dict[str, str], folder: epath.Path) -> Vocabulary:
    vocab, merges = PLAIN_FILES
    ids = _ids(parse_json(files[vocab], folder / vocab))
    pairs = _pairs(files[merges], folder / merges)
    specials = frozenset(token for token in (START, END) if token in ids)
    return _checked(Vocabulary(ids, pairs, specials, files, f"{folder / vocab} and {merges}"))


def _pairs(text: str, file: epath.Path) -> list[tuple[str, str]]:
    """Return the merges of a merges.txt."""
    lines = (line for line in text.split("\n") if line and not line.startswith("#version"))
    return [_pair(line, file) for line in lines]


def _from_tokenizer_json(files: dict[str, str], folder: epath.Path) -> Vocabulary:
    """Return the vocabulary of a tokenizer.json.  Raise UserError for one that is not CLIP's kind.

    Files of the other kind beside it are checked to say the same.
    """
    file = folder / TOKENIZER_FILE
    whole = parse_json(files[TOKENIZER_FILE], file)
    model = whole.section("model")
    if model.get("type", "BPE") != "BPE" or model.get("end_of_word_suffix") != WORD_END:
        raise UserError(
            f"{file} is a tokenizer of type {model.get('type')!r}, not CLIP's byte pairs with "
            f"{WORD_END} at the end of a word."
        )
    ids = _ids(model.section("vocab"))
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise model.error("merges", "a list")
    pairs = [_pair(merge, file) for merge in merges]
    added = _added(whole)
    for token, number in added.items():
        if ids.setdefault(token, number) != number:
            raise UserError(f"{file}: token {token!r} has two ids, {ids[token]} and {number}.")
    for name in PLAIN_FILES:
        if name in files:
            _check_same(name, files[name], folder, ids, pairs)
    own = {TOKENIZER_FILE: files[TOKENIZER_FILE]}
    return _checked(Vocabulary(ids, pairs, frozenset(added), own, str(file)))


def _check_same(
    name: str, text: str, folder: epath.Path, ids: dict[str, int], pairs: list[tuple[str, str]]
) -> None:
    file = folder / name
    if name == PLAIN_FILES[0]:
        other = _ids(parse_json(text, file))
        same = all(ids.get(token) == number for token, number in other.items())
    else:
        same = pairs == _pairs(text, file)
    if not same:
        raise UserError(f"{file} is not the vocabulary of {TOKENIZER_FILE} beside it: remove one.")


def _ids(fields: Section) -> dict[str, int]:
    """Return a vocabulary {token: id}.  Raise UserError for other values, and an id given twice."""
    name = fields.name.removesuffix(".") or "it"
    ids = dict(fields.values)
    if not ids or not all(type(number) is int and number >= 0 for number in ids.values()):
        raise UserError(f"{fields.file}: {name} is no vocabulary (tokens and their ids).")
    if len(set(ids.values())) != len(ids):
        raise UserError(f"{fields.file}: {name} gives an id to several tokens.")
    return ids


def _added(whole: Section) -> dict[str, int]:
    tokens = whole.get("added_tokens") or []
    if not isinstance(tokens, list) or not all(isinstance(token, dict) for token in tokens):
        raise whole.error("added_tokens", "a list of tokens")
    found = {}
    for token in tokens:
        fields = Section(token, whole.file, "added_tokens.")
        content = fields.get("content")
        if not isinstance(content, str) or not content:
            raise fields.error("content", "a text")
        found[content] = fields.whole("id", least=0)
    return found


def _pair(merge: Any, file: epath.Path) -> tuple[str, str]:
    """Return the two parts of a merge, which is a text "a b" or a list of the two."""
    parts = merge.rstrip("\r").split(" ") if isinstance(merge, str) else merge
    good = isinstance(parts, list) and len(parts) == 2
    if not good or not all(isinstance(part, str) and part for part in parts):
        shown = str(merge)[:40]
        raise UserError(f"{file}: {shown!r} is no merge of two tokens: the file is damaged or cut.")
    return parts[0], parts[1]


def _checked(vocabulary: Vocabulary) -> Vocabulary:
    """Return the vocabulary.  Raise UserError where tokens and merges do not belong together."""
    ids, source = vocabulary.ids, vocabulary.source
    known = set(vocabulary.added)
    for first, second in vocabulary.merges:
        for token in (first, second, first + second):
            if token not in ids:
                raise UserError(
                    f"{source} do not belong together, or one is cut: {first!r} and {second!r} are "
                    f"merged, but {token!r} is no token."
                )
        known.add(first + second)
    for token in ids:
        if len(token.removesuffix(WORD_END)) > 1 and token not in known:
            raise UserError(
                f"{source} do not belong together, or one is cut: no merge makes the token "
                f"{token!r}."
            )
    for token in (START, END):
        if token not in ids:
            raise UserError(f"{source}: the token {token} is missing.")
    return vocabulary


def check_fits(vocabulary: Vocabulary, vocab_size: int, end: int | None) -> None:
    """Raise UserError where a vocabulary is not that of a model.

    vocab_size: rows of the model's token embedding. end: the id of the token at
    which the model takes a text's feature, None for the highest id of the text.
    """
    ids, source = vocabulary.ids, vocabulary.source
    highest = max(ids.values())
    if highest >= vocab_size:
        raise UserError(
            f"{source}: token ids go up to {highest}, but the model has {vocab_size} tokens: "
            "the vocabulary is not the model's."
        )
    if end is None and (ids[END] != highest or highest != vocab_size - 1):
        raise UserError(
            f"{source}: {END} has the id {ids[END]}, but the model takes a text's feature at the "
            f"highest of its {vocab_size} ids: the vocabulary is not the model's."
        )
    if end is not None and ids[END] != end:
        raise UserError(
            f"{source}: {END} has the id {ids[END]}, but the model's configuration says {end} "
            "(eos_token_id): the vocabulary is not the model's."
        )


def vocabulary_files(vocab: dict[str, int], merges: list[str]) -> dict[str, str]:
    """Return the texts of vocab.json and merges.txt as the Hugging Face hub has them."""
    return {
        "vocab.json": json.dumps(vocab, ensure_ascii=False),
        "merges.txt": "#version: 0.2\n" + "\n".join(merges) + "\n",
    }


def openai_vocabulary(merge_count: int = 48894) -> tuple[dict[str, int], list[str]]:
    """Return CLIP's vocabulary {token: id} and its merges in order.

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
        + [s + WORD_END for s in symbols]
        + ["".join(m.split()) for m in merges]
        + [START, END]
    )
    return {token: i for i, token in enumerate(tokens)}, merges
