"""The nearest words of a learned context."""

import re

import numpy as np

import dpt_jax
from dpt_jax.predictor import words as explain
from tests.helpers.commands import in_process


def test_words_of_a_context_that_is_words(trained, clip, tmp_path):
    """A context set to the embeddings of words is explained as these, at no distance."""
    predictor = dpt_jax.load(trained)
    ids = [clip.tokenizer.encode(word)[0] for word in ("photo", "of", "a", "zebra")]
    predictor.prompts["text"]["context"] = np.asarray(clip.params["text"]["token_embedding"])[
        None, ids
    ]
    found = explain.neighbours(predictor, top=2)
    assert [one.words[0] for one in found] == ["photo", "of", "a", "zebra"]
    assert [one.distances[0] for one in found] == [0] * 4
    assert all(one.distances[1] > 0 for one in found)
    assert [one.place for one in found] == [1, 2, 3, 4]


def test_words_of_classes_that_have_their_own(trained):
    predictor = dpt_jax.load(trained)
    own = (
        np.random.default_rng(0)
        .normal(size=(1, len(predictor.classnames), 2, 128))
        .astype(np.float32)
    )
    predictor.prompts["text"]["context"] = own
    found = explain.neighbours(predictor, top=1)
    assert [(one.classname, one.place) for one in found] == [
        (n, i) for n in predictor.classnames for i in (1, 2)
    ]
    table = explain.table(found)
    assert table[0][0] == "class"
    assert len({len(row) for row in table}) == 1


def test_explain_prints_a_table(trained):
    lines = in_process(
        "-m", "dpt_jax", "explain", f"--workdir={trained}", "--top=2"
    ).stdout.splitlines()
    assert len(lines) == 2 + 4
    assert re.fullmatch(r"\| 1 +\| \S+ \(\d\.\d+\) +\| \S+ \(\d\.\d+\) +\| \d\.\d\d +\|", lines[2])
    done = in_process("-m", "dpt_jax", "explain", f"--workdir={trained}", "x", check=False)
    assert done.returncode == 2
