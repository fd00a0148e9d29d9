"""The words of the vocabulary that are nearest to each learned context vector.

    python -m dpt_jax.explain --workdir=W [--top=3] [--clip=WEIGHTS]

Distances are Euclidean, between embeddings as they enter the text tower. The
last column is how far the vector is from what it was nearest to, in parts of
the mean distance between two words: near 1, it is no word at all.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from absl import flags

from dpt_jax.commands import flags as cli
from dpt_jax.errors import UserError
from dpt_jax.report.tables import markdown

if TYPE_CHECKING:
    from dpt_jax.inference.predictor import Predictor

PAIRS = 10_000


class Neighbours(NamedTuple):
    """One context vector: whose it is ("" where all classes share it), its place, and its nearest words."""

    classname: str
    place: int  # from 1
    words: list[str]
    distances: list[float]
    in_word_distances: float  # the first of these, over the mean distance of two words


def neighbours(predictor: "Predictor", top: int) -> list[Neighbours]:
    """The `top` nearest words of each context vector of the first layer.

    Raises UserError where no context was learned.
    """
    from dpt_jax.runtime import devices

    if "text" not in predictor.prompts:
        raise UserError(
            f"{predictor.model.prompts.method} learns no context, so there are no words to explain."
        )
    own, tokenizer = (
        predictor.pretrained.params["text"]["token_embedding"],
        predictor.pretrained.tokenizer,
    )
    vocabulary = np.asarray(devices.to_host(own), np.float32)
    generator = np.random.default_rng(0)
    a, b = generator.integers(len(vocabulary), size=(2, PAIRS))
    usual = float(np.linalg.norm(vocabulary[a] - vocabulary[b], axis=-1)[a != b].mean())
    context = np.asarray(predictor.prompts["text"]["context"][0], np.float32)
    specific = context.ndim == 3
    found = []
    for classname, vectors in zip(predictor.classnames if specific else [""], context if specific else [context],
                                  strict=True):  # fmt: skip
        for i, vector in enumerate(vectors):
            distance = np.linalg.norm(vocabulary - vector, axis=-1)
            nearest = np.argsort(distance, kind="stable")[:top]
            words = [tokenizer.decode([int(token)]).strip() for token in nearest]
            found.append(
                Neighbours(
                    classname,
                    i + 1,
                    words,
                    distance[nearest].tolist(),
                    float(distance[nearest[0]] / usual),
                )
            )
    return found


def header(found: Sequence[Neighbours]) -> list[str]:
    """The columns of `rows`."""
    nearest = [f"nearest {i + 1} (distance)" for i in range(len(found[0].words))]
    return [*(["class"] if found[0].classname else []), "context", *nearest, "in word distances"]


def rows(found: Sequence[Neighbours]) -> list[list[str]]:
    """One row a context vector."""
    return [
        [
            *([one.classname] if one.classname else []),
            str(one.place),
            *(
                f"{word} ({distance:.3f})"
                for word, distance in zip(one.words, one.distances, strict=True)
            ),
            f"{one.in_word_distances:.2f}",
        ]
        for one in found
    ]


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"unknown argument {argv[1]!r}: python -m dpt_jax.explain --workdir=W.")
    found = neighbours(cli.load_predictor(batch_size=1), flags.FLAGS.top)
    print(markdown(header(found), rows(found)))


if __name__ == "__main__":
    cli.define_predictor_flags()
    flags.DEFINE_integer("top", 3, "How many words are told for a vector.", lower_bound=1)
    cli.run(main)
