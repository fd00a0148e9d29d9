"""Vocabularies as other libraries save them."""

import json
import pathlib


def tokenizer_json(folder: pathlib.Path) -> dict:
    """The tokenizer.json that transformers 5 writes for the vocab.json and merges.txt of a
    folder.
    """
    ids = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")[1:]
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    names = ("<|startoftext|>", "<|endoftext|>")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": ids[name], "content": name, **special, "special": True} for name in names
        ],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
        "post_processor": None,
        "decoder": {"type": "ByteLevel"},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": names[1],
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>",
            "fuse_unk": False,
            "vocab": ids,
            "merges": [line.split(" ") for line in lines if line],
        },
    }
