"""The words of the vocabulary that are nearest to each learned context vector."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dpt_jax import distributed
from dpt_jax.errors import UserError
from dpt_jax.predictor.predictor import Predictor

PAIRS = 10_000  # of words, for the mean distance of two words


class Neighbours(NamedTuple):
    """The nearest words of one context vector.

    Attributes:
      classname: The class of a class-specific context, else "".
      place: In the context, from 1.
      words: The nearest first.
      distances: Euclidean, of the embeddings.
      in_word_distances: The first of these, divided by the mean distance of two words.
    """

    classname: str
    place: int
    words: list[str]
    distances: list[float]
    in_word_distances: float


def neighbours(predictor: Predictor, top: int) -> list[Neighbours]:
    """Return the `top` nearest words of each context vector of the first layer.

    Raises:
      UserError: The method learns no context, or the context depends on the image.
    """
    method = predictor.config.method
    if "text" not in predictor.prompts:
        raise UserError(f"{method} learns no context, so there are no words to explain.")
    if predictor.model.config.conditioned:
        raise UserError(
            f"the context of {method} depends on the image, so it has no fixed words to explain."
        )
    pretrained = predictor.pretrained
    embedding = distributed.to_host(pretrained.params["text"]["token_embedding"])
    vocabulary = np.asarray(embedding, np.float32)
    a, b = np.random.default_rng(0).integers(len(vocabulary), size=(2, PAIRS))
    usual = float(np.linalg.norm(vocabulary[a] - vocabulary[b], axis=-1)[a != b].mean())
    context = np.asarray(predictor.prompts["text"]["context"][0], np.float32)
    by_class = {"": context}
    if context.ndim == 3:
        by_class = dict(zip(predictor.classnames, context, strict=True))
    found = []
    for classname, vectors in by_class.items():
        for place, vector in enumerate(vectors, 1):
            distance = np.linalg.norm(vocabulary - vector, axis=-1)
            nearest = np.argsort(distance, kind="stable")[:top]
            words = [pretrained.tokenizer.decode([token]).strip() for token in nearest.tolist()]
            distances = distance[nearest].tolist()
            found.append(Neighbours(classname, place, words, distances, distances[0] / usual))
    return found


def table(found: Sequence[Neighbours]) -> list[list[str]]:
    """Return a header, and a row for each context vector."""
    of_classes = bool(found[0].classname)
    header = [f"nearest {i + 1} (distance)" for i in range(len(found[0].words))]
    rows = [["class", "context", *header, "in word distances"]]
    for one in found:
        nearest = zip(one.words, one.distances, strict=True)
        cells = [f"{word} ({distance:.3f})" for word, distance in nearest]
        rows.append([one.classname, str(one.place), *cells, f"{one.in_word_distances:.2f}"])
    return rows if of_classes else [row[1:] for row in rows]
