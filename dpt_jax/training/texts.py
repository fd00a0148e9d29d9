"""Class texts and their features: in frozen CLIP, and with prompts for any class names."""

import functools
import sys
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from dpt_jax import distributed
from dpt_jax.clip.blocks import Params
from dpt_jax.clip.config import CLIPConfig
from dpt_jax.clip.packing import PackedTexts, Text, duplicates, pack_one_a_row, plain_texts
from dpt_jax.clip.pretrained import Pretrained
from dpt_jax.config import templates
from dpt_jax.data.catalogue import descriptions_of
from dpt_jax.logging import say_once
from dpt_jax.model import PromptedCLIP, apply
from dpt_jax.prompts import Prompts
from dpt_jax.prompts.config import PromptConfig
from dpt_jax.prompts.text import context_tokens, prompted_texts

MOST_NAMED = 5  # groups of classes
# Programs take these numbers of texts, padded to a multiple of so many tokens. So other class
# names need no other program.
TEXTS = (4, 32)
TOKENS = 16


def template_texts(
    config: ConfigDict,
    classnames: Sequence[str],
    pretrained: Pretrained,
    key: str = "dataset.template",
) -> list[list[Text]]:
    """Return the class texts for each template of a key, or for each description.

    A class with fewer descriptions than another repeats them, see `frozen_features`.
    """
    tokenizer, length = pretrained.tokenizer, pretrained.config.context_length
    of_each = _texts(config, classnames, key)
    return [
        plain_texts([own[k % len(own)] for own in of_each], tokenizer, length)
        for k in range(max(map(len, of_each)))
    ]


def _texts(
    config: ConfigDict, classnames: Sequence[str], key: str = "dataset.template"
) -> list[list[str]]:
    """Return the texts of each class for frozen CLIP."""
    if config.dataset.descriptions:
        return descriptions_of(config.dataset.descriptions, classnames)
    return [[text.format(name) for text in templates(config, key)] for name in classnames]


def frozen_features(
    config: ConfigDict,
    classnames: Sequence[str],
    pretrained: Pretrained,
    encode: Callable[[Sequence[Text]], ArrayLike],
) -> tuple[jax.Array, jax.Array | None]:
    """Return CLIP's prompt ensemble of each class, by its templates or descriptions.

    Args:
      config: Has the templates or descriptions.
      classnames: Names of the C classes.
      pretrained: The CLIP.
      encode: From C texts to features (…, C, E), not normalised.

    Returns:
      (…, C, E), the mean of the normalised features, and the mean of the unnormalised ones. If no
      class has several texts: the features themselves, and None.
    """
    features = [jnp.asarray(encode(one)) for one in template_texts(config, classnames, pretrained)]
    most = len(features)
    if most == 1:
        return features[0], None
    # A class with fewer texts has them in the first places, with more weight.
    numbers = np.array([[len(own)] for own in _texts(config, classnames)])
    weights = [np.float32((k < numbers) * most / numbers) for k in range(most)]
    units = (f / jnp.linalg.norm(f, axis=-1, keepdims=True) for f in features)
    weighted = jnp.stack([f * w for f, w in zip(features, weights, strict=True)])
    ensemble = sum(f * w for f, w in zip(units, weights, strict=True)) / most
    return jnp.asarray(ensemble), jnp.mean(weighted, 0)


def class_texts(
    config: ConfigDict, prompts: PromptConfig, classnames: Sequence[str], pretrained: Pretrained
) -> list[Text]:
    """Return the class texts in the learned context, or without one frozen CLIP's first texts."""
    if not prompts.text_length:
        return template_texts(config, classnames, pretrained)[0]
    tokenizer, length = pretrained.tokenizer, pretrained.config.context_length
    fixed: list[int] = []
    if config.text_prompt.fixed_words:
        fixed = context_tokens(config.text_prompt.init, tokenizer)[prompts.text_length :]
    position = config.text_prompt.class_position
    return prompted_texts(
        classnames, tokenizer, prompts.text_length, position, prompts.class_specific, length, fixed
    )


def warn_of_duplicates(texts: Sequence[Text], classnames: Sequence[str]) -> None:
    """Warn about classes with the same text, on standard error: standard output may be JSON."""
    same = [" and ".join(repr(classnames[c]) for c in group) for group in duplicates(texts)]
    if same:
        more = f", and {len(same) - MOST_NAMED} more groups" if len(same) > MOST_NAMED else ""
        say_once(
            "these classes have the same text, so CLIP cannot tell them apart: "
            f"{'; '.join(same[:MOST_NAMED])}{more}.",
            file=sys.stderr,
        )


@functools.lru_cache(maxsize=distributed.KEPT_PROGRAMS)
def make_text_encoder(
    clip: CLIPConfig, dtype: jnp.dtype
) -> Callable[[Params, PackedTexts], jax.Array]:
    """Return (parameters of CLIP, texts) -> features (C, E), pmapped, not normalised.

    All methods share one program.
    """
    model = PromptedCLIP(clip, PromptConfig(classes=1), dtype)

    def encode(params: Params, texts: PackedTexts) -> jax.Array:
        variables = {"params": {"clip": params}}
        return jnp.asarray(model.apply(variables, texts, distributed.AXIS, method="encode_text"))

    return jax.pmap(encode, distributed.AXIS)


class TextEncoder:
    """Encodes class names in the learned context, or in the templates without a text prompt."""

    def __init__(
        self, config: ConfigDict, model: PromptedCLIP, pretrained: Pretrained, prompts: Prompts
    ) -> None:
        """pretrained, prompts: with a leading device axis."""
        self._config, self._model = config, model
        self._pretrained, self._prompts = pretrained, prompts
        self._encode = _make_encoder(model)

    def __call__(self, classnames: Sequence[str]) -> np.ndarray:
        """Return the features (C, E) of the names, float32, not normalised."""
        config, sizes, pretrained = self._config, self._model.config, self._pretrained
        if sizes.text_length:
            return self.features(class_texts(config, sizes, classnames, pretrained))
        return np.asarray(frozen_features(config, classnames, pretrained, self.features)[0])

    def features(self, texts: Sequence[Text]) -> np.ndarray:
        """Return the features (C, E) of texts, float32, not normalised."""
        longest = self._model.clip_config.context_length
        parts = []
        for start in range(0, len(texts), TEXTS[-1]):
            own = texts[start : start + TEXTS[-1]]
            rows = next(number for number in TEXTS if number >= len(own))
            width = -(-(max(map(len, own)) - 1) // TOKENS) * TOKENS
            packed = pack_one_a_row(own, rows, min(width, longest - 1))
            found = self._encode(self._pretrained.params, self._prompts, packed)
            parts.append(np.asarray(found.addressable_shards[0].data)[0, : len(own)])
        return np.concatenate(parts)


@functools.lru_cache(maxsize=distributed.KEPT_PROGRAMS)
def _make_encoder(model: PromptedCLIP) -> Callable[[Params, Prompts, PackedTexts], jax.Array]:
    def encode(clip: Params, prompts: Prompts, texts: PackedTexts) -> jax.Array:
        return apply(model, clip, prompts, texts, method="encode_text")

    return jax.pmap(encode, in_axes=(0, 0, None))
