"""What a trained prompt looks at in images: attention over the patches, by class."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dpt_jax.evaluation.metrics import softmax
from dpt_jax.predictor.predictor import Predictor

TOP = 4


class Sight(NamedTuple):
    """What a prompted CLIP sees in one image: its likeliest classes, best first, and attention over
    the patches.

    Maps are (grid, grid), parts of 1; what they lack to 1 in sum goes to other tokens than patches.
    """

    image: np.ndarray  # (size, size, 3) uint8
    classes: Sequence[str]
    probability: np.ndarray  # of these classes
    zero_shot: np.ndarray  # of these classes, by plain CLIP
    plain: np.ndarray  # the class token's in the last block, without prompts
    prompted: np.ndarray | None  # the same with prompts; None where the images see none
    class_maps: Sequence[
        np.ndarray | None
    ]  # CAVPT's of these classes, if any; None for one that it did not look at


def describe(predictor: Predictor, pixels: np.ndarray, top: int = TOP) -> list[Sight]:
    """Return what there is to see of N images.

    pixels: (N, size, size, 3) uint8, see Predictor.pixels. top: how many of the likeliest classes.
    """
    outputs, plain = predictor.see(pixels)
    probability, zero_shot = (softmax(x.logits) for x in (outputs, plain))
    grid = predictor.model.clip.grid

    def patches(attention: np.ndarray) -> np.ndarray:
        """Return the part on patches: (…, 1 + patches + others) becomes (…, grid, grid)."""
        return attention[..., 1 : 1 + grid**2].reshape(*attention.shape[:-1], grid, grid)

    sights = []
    for i, image in enumerate(pixels):
        best = np.argsort(-probability[i], kind="stable")[:top]
        maps: list[np.ndarray | None] = []
        if outputs.class_attention is not None:
            looked_at = {int(c): k for k, c in enumerate(outputs.indices[i])}
            last = patches(outputs.class_attention[i, -1])
            maps = [last[looked_at[c]] if c in looked_at else None for c in best]
        visual = predictor.model.prompts.visual_length or predictor.model.prompts.top_k
        sights.append(
            Sight(
                image=image,
                classes=[predictor.classnames[c] for c in best],
                probability=probability[i, best],
                zero_shot=zero_shot[i, best],
                plain=patches(plain.attention[i].mean(0)),
                prompted=patches(outputs.attention[i].mean(0)) if visual else None,
                class_maps=maps,
            )
        )
    return sights
