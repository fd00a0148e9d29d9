"""Text features of any class names, by a few programs that serve every call."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from dpt_jax import distributed
from dpt_jax.clip.text import TextLayout
from dpt_jax.methods import PromptConfig
from dpt_jax.model import PromptedCLIP
from dpt_jax.training.setup import Experiment, ensemble, learned_layout, plain_layouts

# A program takes one of these numbers of texts, of a multiple of so many tokens.
TEXTS = (4, 32)
TOKENS = 16


class TextEncoder:
    """Encodes class names in the learned context, or in the template where none was learned.

    The texts are padded to a few fixed shapes, so that other names are other
    inputs of a program, and no other program.
    """

    def __init__(self, prepared: Experiment, prompts: Any) -> None:
        """prompts: with a leading device axis, as `prepared.frozen` has it."""
        self._prepared, self._prompts = prepared, prompts
        self._program = _make_program(prepared.model)

    def __call__(self, classnames: Sequence[str]) -> np.ndarray:
        """Return the features (C, E) of the names, float32, not normalised."""
        prepared = self._prepared
        if prepared.model.prompts.text_length:
            layout = learned_layout(
                prepared.config, prepared.model.prompts, classnames, prepared.pretrained
            )
            return self.features(layout)
        layouts = plain_layouts(prepared.config, classnames, prepared.pretrained)
        return np.asarray(ensemble([jax.numpy.asarray(self.features(one)) for one in layouts]))

    def features(self, layout: TextLayout) -> np.ndarray:
        """Return the features (C, E) of a layout's texts, float32, not normalised."""
        texts = unpacked(layout)
        parts = []
        for start in range(0, len(texts), TEXTS[-1]):
            own = texts[start : start + TEXTS[-1]]
            rows = next(number for number in TEXTS if number >= len(own))
            padded = one_a_row(own, rows, self._prepared.model.clip.context_length)
            found = self._program(self._prepared.frozen.clip, self._prompts, padded)
            parts.append(np.asarray(found.addressable_shards[0].data)[0, : len(own)])
        return np.concatenate(parts)


def held_texts(prepared: Experiment) -> jax.Array | None:
    """Return what the losses hold the learned texts to, (devices, C, E); None if they hold none.

    It is the mean over the templates of `loss.template`, each as it comes out of plain CLIP.
    """
    if not prepared.model.prompts.held:
        return None
    if not prepared.config.loss.template:
        return prepared.frozen.texts
    classnames = prepared.dataset.classnames
    plain = dataclasses.replace(prepared.model, prompts=PromptConfig(len(classnames)))
    encoder = TextEncoder(prepared._replace(model=plain), {})
    layouts = plain_layouts(prepared.config, classnames, prepared.pretrained, "loss.template")
    mean = np.mean([encoder.features(layout) for layout in layouts], axis=0)
    return distributed.replicate(mean)


@functools.lru_cache(maxsize=distributed.KEPT_PROGRAMS)
def _make_program(model: PromptedCLIP) -> Callable[[Any, Any, TextLayout], jax.Array]:
    def encode(clip: Any, prompts: Any, layout: TextLayout) -> jax.Array:
        params = {"clip": clip, "prompts": prompts}
        if not model.prompts.text_length:
            return model.encode_plain(params, layout)
        return model.encode_learned(params, layout)

    return jax.pmap(encode, in_axes=(0, 0, None))


def unpacked(layout: TextLayout) -> list[np.ndarray]:
    """Return each text of a layout as (tokens, 2): token id, and row of the context or -1."""
    shared = np.stack([layout.prefix_tokens, layout.prefix_context], -1)
    own = np.stack([layout.tokens, layout.context], -1)
    text = np.asarray(layout.text)
    return [np.concatenate([shared, own[text == c]]) for c in range(len(layout.order))]


def one_a_row(texts: Sequence[np.ndarray], rows: int, longest: int) -> TextLayout:
    """Return a layout with one text a row, which shares the start token alone.

    texts: see `unpacked`. rows: as many, and rows of padding. longest: tokens that a text may have.
    """
    widest = max(map(len, texts)) - 1
    width = min(-(-widest // TOKENS) * TOKENS, longest - 1)
    table = np.tile(np.array([0, -1, -1, 0], np.int32), (rows, width, 1))
    ends = np.zeros((rows, 1), np.int32)
    for row, text in enumerate(texts):
        own = len(text) - 1
        table[row, :own, :2] = text[1:]
        table[row, :own, 2] = row
        table[row, :own, 3] = np.arange(1, own + 1)
        ends[row] = own - 1
    tokens, context, belongs, position = np.moveaxis(table, -1, 0)
    start, none = texts[0][:1, 0].astype(np.int32), np.full(1, -1, np.int32)
    order = np.arange(rows, dtype=np.int32)
    return TextLayout(start, none, tokens, context, belongs, position, ends, order)
