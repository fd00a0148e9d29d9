"""Class texts and their features: in frozen CLIP, and with prompts for any class names."""

import functools
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from dpt_jax import distributed
from dpt_jax.clip.blocks import Params
from dpt_jax.clip.packing import PackedTexts, Text, pack_one_a_row, plain_texts
from dpt_jax.clip.pretrained import Pretrained
from dpt_jax.config import templates
from dpt_jax.data.catalogue import descriptions_of
from dpt_jax.logging import say_once
from dpt_jax.model import PromptedCLIP, apply
from dpt_jax.prompts import PromptConfig, Prompts
from dpt_jax.prompts.text import context_tokens, prompted_texts

# `encode_texts` takes these numbers of texts, padded to a multiple of so many tokens. So other
# class names need no other program.
TEXTS = (4, 32)
TOKENS = 16


def frozen_texts(
    config: ConfigDict, classnames: Sequence[str], key: str = "dataset.template"
) -> list[list[str]]:
    """Return the texts of each class for frozen CLIP, by the templates of a key or descriptions."""
    if config.dataset.descriptions:
        return descriptions_of(config.dataset.descriptions, classnames)
    return [[text.format(name) for text in templates(config, key)] for name in classnames]


def tokenized(texts: list[list[str]], pretrained: Pretrained) -> Iterator[list[Text]]:
    """Yield the first text of each class, then the second, and so on.

    A class with fewer texts than another repeats them.
    """
    for k in range(max(map(len, texts))):
        of_each = [own[k % len(own)] for own in texts]
        yield plain_texts(of_each, pretrained.tokenizer, pretrained.config.context_length)


def class_texts(
    config: ConfigDict, prompts: PromptConfig, classnames: Sequence[str], pretrained: Pretrained
) -> list[Text]:
    """Return the class texts in the learned context, or without one frozen CLIP's first texts."""
    if not prompts.text_length:
        return next(tokenized(frozen_texts(config, classnames), pretrained))
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
    groups = defaultdict(list)
    for text, name in zip(texts, classnames, strict=True):
        groups[tuple(text)].append(repr(name))
    if same := [" and ".join(names) for names in groups.values() if len(names) > 1]:
        say_once(
            f"these classes have the same text, so CLIP cannot tell them apart: {'; '.join(same)}.",
            file=sys.stderr,
        )


def frozen_features(
    config: ConfigDict,
    classnames: Sequence[str],
    pretrained: Pretrained,
    encode: Callable[[Sequence[Text]], ArrayLike],
) -> tuple[jax.Array, jax.Array | None]:
    """Return CLIP's prompt ensemble of each class, by its templates or descriptions.

    encode: from C texts to features (…, C, E), not normalised.

    Returns:
      (…, C, E), the mean of the normalised features, and the mean of the unnormalised ones. If no
      class has several texts: the features themselves, and None.
    """
    texts = frozen_texts(config, classnames)
    features = [jnp.asarray(encode(one)) for one in tokenized(texts, pretrained)]
    most = len(features)
    if most == 1:
        return features[0], None
    # A class with fewer texts has them in the first places, with more weight.
    numbers = np.array([[len(own)] for own in texts])
    weights = [np.float32((k < numbers) * most / numbers) for k in range(most)]
    units = (f / jnp.linalg.norm(f, axis=-1, keepdims=True) for f in features)
    weighted = jnp.stack([f * w for f, w in zip(features, weights, strict=True)])
    ensemble = sum(f * w for f, w in zip(units, weights, strict=True)) / most
    return jnp.asarray(ensemble), jnp.mean(weighted, 0)


def text_encoder(model: PromptedCLIP) -> Callable[[Params, Prompts, PackedTexts], jax.Array]:
    """Return (CLIP's parameters, prompts, texts) -> features (devices, C, E), not normalised.

    The texts have no device axis; the devices share the work.
    """
    return distributed.on_devices(_encode_text, model, in_axes=(0, 0, None))


def _encode_text(
    model: PromptedCLIP, clip: Params, prompts: Prompts, texts: PackedTexts
) -> jax.Array:
    return apply(model, clip, prompts, texts, distributed.AXIS, method="encode_text")


def encode_texts(
    model: PromptedCLIP, pretrained: Pretrained, prompts: Prompts, texts: Sequence[Text]
) -> np.ndarray:
    """Return the features (C, E) of any texts, float32, not normalised.

    The parameters of `pretrained` and the prompts have a leading device axis.
    """
    encode, longest = text_encoder(model), model.clip_config.context_length
    parts = []
    for start in range(0, len(texts), TEXTS[-1]):
        own = texts[start : start + TEXTS[-1]]
        rows = next(number for number in TEXTS if number >= len(own))
        width = -(-(max(map(len, own)) - 1) // TOKENS) * TOKENS
        packed = pack_one_a_row(own, rows, min(width, longest - 1))
        found = distributed.to_host(encode(pretrained.params, prompts, packed))
        parts.append(found[: len(own)])
    return np.concatenate(parts)


def encode_names(
    config: ConfigDict,
    model: PromptedCLIP,
    pretrained: Pretrained,
    prompts: Prompts,
    classnames: Sequence[str],
) -> np.ndarray:
    """Return the features of any names in the learned context, or in the templates without one.

    See `encode_texts`.
    """
    encode = functools.partial(encode_texts, model, pretrained, prompts)
    if model.config.text_length:
        return encode(class_texts(config, model.config, classnames, pretrained))
    return np.asarray(frozen_features(config, classnames, pretrained, encode)[0])
