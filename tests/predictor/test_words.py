"""The nearest words of a learned context."""

import re

import numpy as np

import dpt_jax
from dpt_jax.predictor.explain import nearest_words
from tests.helpers.commands import in_process


def test_words_of_a_context_that_is_words(trained, clip, tmp_path):
    """A context set to the embeddings of words is explained as these, at no distance."""
    predictor = dpt_jax.load(trained)
    ids = [clip.tokenizer.encode(word)[0] for word in ("photo", "of", "a", "zebra")]
    predictor.prompts["text"]["context"] = np.asarray(clip.params["text"]["token_embedding"])[
        None, ids
    ]
    found = nearest_words(predictor, top=2)
    assert [*found.columns] == [
        "context",
        "nearest 1 (distance)",
        "nearest 2 (distance)",
        "in word distances",
    ]
    assert found.iloc[:, :2].values.tolist() == [
        ["1", "photo (0.000)"],
        ["2", "of (0.000)"],
        ["3", "a (0.000)"],
        ["4", "zebra (0.000)"],
    ]
    assert not found.iloc[:, 2].str.contains("(0.000)", regex=False).any()


def test_explain_prints_a_table(trained):
    lines = in_process(
        "-m", "dpt_jax", "explain", f"--workdir={trained}", "--top=2"
    ).stdout.splitlines()
    assert len(lines) == 2 + 4
    assert re.fullmatch(r"\| 1 +\| \S+ \(\d\.\d+\) +\| \S+ \(\d\.\d+\) +\| \d\.\d\d +\|", lines[2])
    done = in_process("-m", "dpt_jax", "explain", f"--workdir={trained}", "x", check=False)
    assert done.returncode == 2
