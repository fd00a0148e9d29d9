"""The words of the vocabulary that are nearest to each learned context vector."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dpt_jax import distributed
from dpt_jax.errors import UserError
from dpt_jax.predictor.predictor import Predictor

PAIRS = 10_000  # of words, whose mean distance is the measure


class Neighbours(NamedTuple):
    """One context vector: whose it is ("" where all classes share it), its place, and its nearest
    words.
    """

    classname: str
    place: int  # from 1
    words: list[str]
    distances: list[float]
    in_word_distances: float  # the first of these, over the mean distance of two words


def neighbours(predictor: Predictor, top: int) -> list[Neighbours]:
    """Return the `top` nearest words of each context vector of the first layer.

    Raise UserError where no context was learned, or where it depends on the image.
    """
    if "text" not in predictor.prompts:
        raise UserError(
            f"{predictor.model.config.method} learns no context, so there are no words to explain."
        )
    if predictor.model.config.conditioned:
        raise UserError(
            f"the context of {predictor.model.config.method} depends on the image, so it has no "
            "fixed words to explain."
        )
    own, tokenizer = (
        predictor.pretrained.params["text"]["token_embedding"],
        predictor.pretrained.tokenizer,
    )
    vocabulary = np.asarray(distributed.to_host(own), np.float32)
    generator = np.random.default_rng(0)
    a, b = generator.integers(len(vocabulary), size=(2, PAIRS))
    usual = float(np.linalg.norm(vocabulary[a] - vocabulary[b], axis=-1)[a != b].mean())
    context = np.asarray(predictor.prompts["text"]["context"][0], np.float32)
    specific = context.ndim == 3
    found = []
    classnames = predictor.classnames if specific else [""]
    contexts = context if specific else [context]
    for classname, vectors in zip(classnames, contexts, strict=True):
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
    """Return the columns of `rows`."""
    nearest = [f"nearest {i + 1} (distance)" for i in range(len(found[0].words))]
    return [*(["class"] if found[0].classname else []), "context", *nearest, "in word distances"]


def rows(found: Sequence[Neighbours]) -> list[list[str]]:
    """Return one row for each context vector."""
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
