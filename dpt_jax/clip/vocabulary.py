"""The vocabulary of OpenAI's CLIP."""

import gzip

from dpt_jax.io import ASSETS

START, END = "<|startoftext|>", "<|endoftext|>"
OPENAI_SIZE = 49408
WORD_END = "</w>"


def openai_vocabulary(merge_count: int = 48894) -> tuple[dict[str, int], list[str]]:
    """Return CLIP's vocabulary {token: id} and its merges in order.

    Its tokens are 256 byte symbols, the same at the end of a word, one per merge, start and end.
    Fewer merges give a smaller vocabulary of the same kind.
    """
    content = (ASSETS / "bpe_simple_vocab_16e6.txt.gz").read_bytes()
    lines = gzip.decompress(content).decode("utf-8").split("\n")
    merges = lines[1 : 1 + merge_count]
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    visible += range(ord("®"), ord("ÿ") + 1)
    symbols = [chr(b) for b in visible] + [chr(256 + i) for i in range(256 - len(visible))]
    tokens = [*symbols, *(s + WORD_END for s in symbols), *("".join(m.split()) for m in merges)]
    return {token: i for i, token in enumerate([*tokens, START, END])}, merges
