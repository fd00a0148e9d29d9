"""Print the words of the vocabulary that are nearest to each learned context vector.

    python -m dpt_jax.explain --workdir=W [--top=3] [--clip=WEIGHTS]

Distances are Euclidean, between embeddings as they enter the text tower. The
last column is the distance to the nearest word, divided by the mean distance
between two words: near 1, the vector is no word at all.
"""

from collections.abc import Sequence

from absl import flags

from dpt_jax.commands import flags as cli
from dpt_jax.errors import UserError
from dpt_jax.inference.words import header, neighbours, rows
from dpt_jax.report.tables import markdown


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"unknown argument {argv[1]!r}: python -m dpt_jax.explain --workdir=W.")
    found = neighbours(cli.load_predictor(batch_size=1), flags.FLAGS.top)
    print(markdown(header(found), rows(found)))


if __name__ == "__main__":
    cli.define_predictor_flags()
    flags.DEFINE_integer("top", 3, "How many words are told for a vector.", lower_bound=1)
    cli.run(main)
