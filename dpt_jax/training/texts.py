"""Text features of any class names, by a few programs that serve every call."""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from dpt_jax import distributed
from dpt_jax.clip.blocks import Params
from dpt_jax.clip.packing import PackedTexts, Text, pack_one_a_row
from dpt_jax.model import PromptedCLIP, apply
from dpt_jax.prompts import Prompts
from dpt_jax.prompts.config import PromptConfig
from dpt_jax.training.setup import Experiment, class_texts, frozen_features, template_texts

# A program takes one of these numbers of texts, padded to a multiple of so many tokens. So
# other class names do not compile another program.
TEXTS = (4, 32)
TOKENS = 16


class TextEncoder:
    """Encodes class names in the learned context, or in the templates without a text prompt."""

    def __init__(self, experiment: Experiment, prompts: Prompts) -> None:
        """prompts: with a leading device axis, as `experiment.frozen` has it."""
        self._experiment, self._prompts = experiment, prompts
        self._encode = _make_encoder(experiment.model)

    def __call__(self, classnames: Sequence[str]) -> np.ndarray:
        """Return the features (C, E) of the names, float32, not normalised."""
        config, model, pretrained = self._experiment.config, *self._experiment[2:4]
        if model.config.text_length:
            return self.features(class_texts(config, model.config, classnames, pretrained))
        return np.asarray(frozen_features(config, classnames, pretrained, self.features)[0])

    def features(self, texts: Sequence[Text]) -> np.ndarray:
        """Return the features (C, E) of texts, float32, not normalised."""
        longest = self._experiment.model.clip_config.context_length
        parts = []
        for start in range(0, len(texts), TEXTS[-1]):
            own = texts[start : start + TEXTS[-1]]
            rows = next(number for number in TEXTS if number >= len(own))
            width = -(-(max(map(len, own)) - 1) // TOKENS) * TOKENS
            packed = pack_one_a_row(own, rows, min(width, longest - 1))
            found = self._encode(self._experiment.frozen.clip, self._prompts, packed)
            parts.append(np.asarray(found.addressable_shards[0].data)[0, : len(own)])
        return np.concatenate(parts)


def consistency_target(experiment: Experiment) -> jax.Array | None:
    """Return the target of the consistency losses, (devices, C, E); None without such a loss.

    It is the mean of the features by each template of `loss.template`, not normalised before, or Z
    without such a template or with `dataset.descriptions`.
    """
    if not experiment.model.config.has_consistency:
        return None
    if not experiment.config.loss.template or experiment.config.dataset.descriptions:
        return experiment.frozen.texts
    classnames = experiment.dataset.classnames
    frozen = experiment.model.clone(config=PromptConfig(len(classnames)))
    encoder = TextEncoder(experiment._replace(model=frozen), {})
    texts = template_texts(
        experiment.config, classnames, experiment.pretrained, key="loss.template"
    )
    return distributed.replicate(np.mean([encoder.features(one) for one in texts], axis=0))


@functools.lru_cache(maxsize=distributed.KEPT_PROGRAMS)
def _make_encoder(model: PromptedCLIP) -> Callable[[Params, Prompts, PackedTexts], jax.Array]:
    def encode(clip: Params, prompts: Prompts, texts: PackedTexts) -> jax.Array:
        return apply(model, clip, prompts, texts, method="encode_text")

    return jax.pmap(encode, in_axes=(0, 0, None))
