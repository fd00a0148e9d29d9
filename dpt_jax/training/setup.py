"""Setup shared by training and evaluation: data, CLIP, model and class texts."""

import functools
import sys
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from dpt_jax import distributed
from dpt_jax.clip.blocks import Params
from dpt_jax.clip.config import CLIPConfig
from dpt_jax.clip.packing import PackedTexts, Text, pack, pack_one_a_row, plain_texts
from dpt_jax.clip.pretrained import Pretrained, load_clip
from dpt_jax.config import flat, prompt_config, templates
from dpt_jax.data import loader, records
from dpt_jax.data.catalogue import descriptions_of
from dpt_jax.data.dataset import digest_of_examples, load_dataset
from dpt_jax.data.records import Dataset, Example
from dpt_jax.errors import UserError
from dpt_jax.logging import say_once
from dpt_jax.model import PromptedCLIP, Texts, apply, visual_depth, visual_layers
from dpt_jax.prompts import PromptConfig, Prompts
from dpt_jax.prompts.text import context_tokens, prompted_texts

# Settings that may differ between hosts: what the paths contain is compared instead.
OF_A_HOST = (
    *("clip.weights", "dataset.root", "dataset.sample", "dataset.split", "dataset.workers"),
    *("dataset.cache_gb", "init_from"),
)
# `encode_texts` pads texts to one of these numbers, and each to a multiple of TOKENS tokens. So
# other class names need no other program.
TEXTS = (4, 32)
TOKENS = 16


# The batches of a test split with the features of frozen CLIP, without images. No prompt changes
# them, so the runs of a sweep compute them once.
FeatureCache = dict[Hashable, list[loader.Batch]]


class Experiment(NamedTuple):
    """One configuration, ready to run.

    The parameters of `pretrained` and the arrays of `texts` have a leading device axis.
    """

    config: ConfigDict
    dataset: Dataset
    model: PromptedCLIP
    pretrained: Pretrained
    texts: Texts
    features: FeatureCache  # filled by evaluations


def prepare(
    config: ConfigDict, pretrained: Pretrained | None = None, whole: Dataset | None = None
) -> Experiment:
    """Load data and CLIP, and encode the frozen class texts.

    pretrained, whole: the CLIP and the whole dataset, if already loaded.
    """
    dataset = load_dataset(config.dataset, config.seed, whole)
    if pretrained is None:
        pretrained = load_clip(config.clip.weights, compute_dtype(config))
    return assemble(config, dataset, pretrained)


def assemble(config: ConfigDict, dataset: Dataset, pretrained: Pretrained) -> Experiment:
    """Return the experiment of a dataset and a CLIP that are loaded."""
    gigabytes = config.dataset.cache_gb
    records.cache.limit = round(gigabytes * 1e9) if gigabytes >= 0 else records.cache.default
    model = make_model(config, dataset.classnames, pretrained)
    texts = class_texts(config, model.config, dataset.classnames, pretrained)
    warn_of_duplicates(texts, dataset.classnames)
    pretrained = pretrained._replace(params=distributed.replicate(pretrained.params))
    distributed.check_same(lambda: _facts(config, dataset, pretrained))
    encode = text_encoder(frozen_clip(model))  # all methods share one program
    features, mean = frozen_features(
        config,
        dataset.classnames,
        pretrained,
        lambda one: encode(pretrained.params, {}, pack(one)),
    )
    weights = model.config.weights
    packed = distributed.replicate(pack(texts, share=not (weights.text and weights.dropout)))
    return Experiment(config, dataset, model, pretrained, Texts(packed, features, mean=mean), {})


def frozen_clip(model: PromptedCLIP) -> PromptedCLIP:
    """Return the model without prompts, the same for all methods."""
    return PromptedCLIP(model.clip_config, PromptConfig(classes=1), model.dtype)


def clip_fingerprint(pretrained: Pretrained) -> dict[str, Any]:
    """Return a digest of CLIP's weights, independent of their type, and how CLIP uses them."""
    towers = {"image tower": pretrained.config.vision, "text tower": pretrained.config.text}
    return {
        "weights": pretrained.digest,
        "preprocessing": pretrained.config.preprocessing.to_dict(),
        **{name: {"heads": x.heads, "activation": x.activation} for name, x in towers.items()},
    }


def _facts(config: ConfigDict, dataset: Dataset, pretrained: Pretrained) -> dict[str, str]:
    """Return what all hosts must agree on, see `distributed.check_same`."""
    shared = {
        f"--config.{key}": repr(value)
        for key, value in flat(config.to_dict()).items()
        if key not in OF_A_HOST
    }
    digests = dataset.digest, digest_of_examples(dataset.train), digest_of_examples(dataset.test)
    return {
        **shared,
        "CLIP (clip.weights)": repr(clip_fingerprint(pretrained)),
        "list of images (dataset.root, dataset.sample)": repr(digests),
    }


def loading(
    experiment: Experiment, examples: Sequence[Example], batch_size: int, **more: Any
) -> loader.Loading:
    """Return how the images of an experiment are loaded; `more` are further fields."""
    config, clip = experiment.config, experiment.model.clip_config
    return loader.Loading(
        read=experiment.dataset.read,
        examples=examples,
        size=clip.image_size,
        batch_size=batch_size,
        preprocessing=clip.preprocessing,
        workers=config.dataset.workers,
        skip_unreadable=config.dataset.on_error == "skip",
        host=jax.process_index(),
        hosts=jax.process_count(),
        seed=config.seed,
        augment=config.train.augment,
        shift=config.train.shift,
        partial=config.train.keep_partial,
        **more,
    )


def make_model(
    config: ConfigDict, classnames: Sequence[str], pretrained: Pretrained
) -> PromptedCLIP:
    """Return the model of a configuration.  Raise UserError if the prompts do not fit the CLIP."""
    clip = pretrained.config
    words = context_tokens(config.text_prompt.init, pretrained.tokenizer)
    prompts = prompt_config(config, len(classnames), clip.vision.layers, len(words))
    check_fit(clip, prompts)
    return PromptedCLIP(clip, prompts, compute_dtype(config), config.train.remat)


def check_fit(clip: CLIPConfig, prompts: PromptConfig) -> None:
    """Raise UserError if prompts need more layers than the CLIP has, or do not fit each other."""
    image, text, weights = clip.vision.layers, clip.text.layers, prompts.weights
    before_cavpt = visual_layers(clip, prompts)
    for key, layer, first, last in (
        ("cavpt.first_layer", prompts.first_layer, 1 if prompts.top_k else 0, image),
        ("visual_prompt.depth", prompts.visual_length and prompts.visual_depth, 0, before_cavpt),
        ("text_prompt.depth", prompts.text_length and prompts.text_depth, 0, text),
        ("weights.image_layers", max(weights.vision or (0,)), 0, image),
        ("weights.text_layers", max(weights.text or (0,)), 0, text),
    ):
        if not first <= layer <= last:
            raise UserError(f"{key} is {layer}: on this CLIP it must be from 1 to {last}.")
    for key, tokens, context in (
        ("length", prompts.visual_length, prompts.text_length),
        ("depth", visual_depth(clip, prompts), prompts.text_depth),
    ):
        if prompts.coupled and tokens != context:
            raise UserError(
                "visual_prompt.coupled computes each visual token from a context token, but "
                f"visual_prompt.{key} is {tokens} and text_prompt.{key} is {context}: give the "
                "same number."
            )


def compute_dtype(config: ConfigDict) -> jnp.dtype:
    """Return float32 or bfloat16; "auto" is float32 on a CPU and bfloat16 elsewhere."""
    name = config.dtype
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


def consistency_target(experiment: Experiment) -> jax.Array | None:
    """Return the target of the consistency losses, (devices, C, E); None without such a loss.

    It is the mean of the unnormalised features of each template of `loss.template`. Without a
    template, or with `dataset.descriptions`, it is Z.
    """
    if not experiment.model.config.has_consistency:
        return None
    if not experiment.config.loss.template or experiment.config.dataset.descriptions:
        return experiment.texts.frozen
    model, pretrained = frozen_clip(experiment.model), experiment.pretrained
    texts = frozen_texts(experiment.config, experiment.dataset.classnames, "loss.template")
    features = [encode_texts(model, pretrained, {}, one) for one in tokenized(texts, pretrained)]
    return distributed.replicate(np.mean(features, axis=0))


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
    """Return the class texts in the learned context, or frozen CLIP's first texts without one."""
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
