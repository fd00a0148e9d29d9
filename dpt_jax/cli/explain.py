"""Print the words of the vocabulary that are nearest to each learned context vector.

    dpt-jax explain W [--top=3] [--clip=WEIGHTS]

Distances are Euclidean, between inputs of the text tower. The last column is the distance to the
nearest word, divided by the mean distance between two words: near 1, the vector resembles no word.
"""

import argparse

from dpt_jax import cli


def add_arguments(parser: argparse.ArgumentParser) -> None:
    cli.add_run(parser)
    cli.add_top(parser, 3, "words per vector")


def run(flags: argparse.Namespace) -> None:
    from dpt_jax.io import as_path
    from dpt_jax.predictor import load, nearest_words
    from dpt_jax.report import markdown

    predictor = load(as_path(flags.workdir), clip=flags.clip, batch_size=1)
    print(markdown(nearest_words(predictor, flags.top)))
