"""Setup shared by training and evaluation: data, CLIP and model."""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dpt_jax import distributed
from dpt_jax.clip.config import CLIPConfig
from dpt_jax.clip.packing import pack
from dpt_jax.clip.pretrained import Pretrained, load_clip
from dpt_jax.config import flat, prompt_config
from dpt_jax.data import records
from dpt_jax.data.dataset import digest_of_examples, load_dataset
from dpt_jax.data.records import Dataset
from dpt_jax.errors import UserError
from dpt_jax.model import PromptedCLIP, Texts, visual_depth, visual_layers
from dpt_jax.prompts import PromptConfig
from dpt_jax.prompts.text import context_tokens
from dpt_jax.training.texts import (
    class_texts,
    encode_texts,
    frozen_features,
    frozen_texts,
    text_encoder,
    tokenized,
    warn_of_duplicates,
)

# Settings that may differ between hosts: what the paths contain is compared instead.
OF_A_HOST = (
    *("clip.weights", "dataset.root", "dataset.sample", "dataset.split", "dataset.workers"),
    *("dataset.cache_gb", "init_from"),
)


class Experiment(NamedTuple):
    """One configuration, ready to run.

    The parameters of `pretrained` and the arrays of `texts` have a leading device axis.
    features: the cache of frozen features that experiments of this process share
    (evaluation.evaluate), or None.
    """

    config: ConfigDict
    dataset: Dataset
    model: PromptedCLIP
    pretrained: Pretrained
    texts: Texts
    features: dict[Hashable, Any] | None = None


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
    return Experiment(config, dataset, model, pretrained, Texts(packed, features, mean=mean))


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


def shared_loading(experiment: Experiment) -> dict[str, Any]:
    """Return the arguments of `loader.Loading` that training and evaluation share."""
    config, clip = experiment.config.dataset, experiment.model.clip_config
    return {
        "read": experiment.dataset.read,
        "size": clip.image_size,
        "preprocessing": clip.preprocessing,
        "workers": config.workers,
        "skip_unreadable": config.on_error == "skip",
        "host": jax.process_index(),
        "hosts": jax.process_count(),
    }


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


def compute_dtype(config: ConfigDict) -> jnp.dtype:
    """Return float32 or bfloat16; "auto" is float32 on a CPU and bfloat16 elsewhere."""
    name = config.dtype
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)
