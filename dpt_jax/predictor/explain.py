"""What prompts do: which patches they attend to, and which words their context is near."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from dpt_jax import distributed
from dpt_jax.data.memory import Images
from dpt_jax.errors import UserError
from dpt_jax.evaluation.metrics import softmax
from dpt_jax.predictor.predictor import Predictor

TOP = 4
PAIRS = 10_000  # of words, for the mean distance of two words


class Sight(NamedTuple):
    """The likeliest classes of an image, best first, and attention over its patches.

    Maps are (grid, grid). Their sum is 1 minus the attention to tokens other than patches.
    """

    image: np.ndarray  # (size, size, 3) uint8
    classes: Sequence[str]
    probability: np.ndarray  # of these classes
    zero_shot: np.ndarray  # their probability in zero-shot CLIP
    plain: np.ndarray  # of the class token in the last block of frozen CLIP
    prompted: np.ndarray | None  # the same with visual prompts, None for methods without them
    class_maps: Sequence[np.ndarray | None]  # of each class's prompt, None if it has none


def describe(predictor: Predictor, images: Images, top: int = TOP) -> list[Sight]:
    """Return the maps of each image, see `Predictor.predict_proba`, and its `top` classes."""
    grid, learned = predictor.model.clip_config.grid, predictor.model.config

    def patches(attention: np.ndarray) -> np.ndarray:
        """Select the patches: (…, 1 + patches + others) to (…, grid, grid)."""
        return attention[..., 1 : 1 + grid**2].reshape(*attention.shape[:-1], grid, grid)

    sights = []
    for batch, outputs in predictor.answers(images):
        probability, zero_shot = softmax(outputs.logits), softmax(outputs.zero_shot.logits)
        for i, image in enumerate(batch["image"]):
            best = np.argsort(-probability[i], kind="stable")[:top]
            maps: list[np.ndarray | None] = []
            if outputs.class_attention is not None:
                last = patches(outputs.class_attention[i, -1])
                by_class = dict(zip(outputs.zero_shot.indices[i].tolist(), last, strict=True))
                maps = [by_class.get(c) for c in best.tolist()]
            own = patches(outputs.attention[i].mean(0)) if learned.learns_images else None
            sights.append(
                Sight(
                    image,
                    [predictor.classnames[c] for c in best],
                    probability[i, best],
                    zero_shot[i, best],
                    plain=patches(outputs.zero_shot.attention[i].mean(0)),
                    prompted=own,
                    class_maps=maps,
                )
            )
    return sights


def nearest_words(predictor: Predictor, top: int) -> pd.DataFrame:
    """Return a row of text with the `top` nearest words of each context vector of the first layer.

    Distances are Euclidean, between embeddings. The last column is the smallest distance, divided
    by the mean distance between two words. The class comes first if each has its own context.

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
    rows = []
    for place in np.ndindex(context.shape[:-1]):  # (class, vector), or (vector,) of all classes
        distance = np.linalg.norm(vocabulary - context[place], axis=-1)
        row = {"class": predictor.classnames[place[0]]} if context.ndim == 3 else {}
        row["context"] = str(place[-1] + 1)
        for i, token in enumerate(np.argsort(distance, kind="stable")[:top].tolist(), 1):
            word = pretrained.tokenizer.decode([token]).strip()
            row[f"nearest {i} (distance)"] = f"{word} ({distance[token]:.3f})"
        row["in word distances"] = f"{distance.min() / usual:.2f}"
        rows.append(row)
    return pd.DataFrame(rows)
