"""What training and evaluation both start from: data, backbone, model, class texts."""

import dataclasses
import functools
import sys
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dpt_jax import distributed, settings
from dpt_jax.clip.config import CLIPConfig
from dpt_jax.clip.pretrained import Pretrained, load_clip
from dpt_jax.clip.text import TextLayout
from dpt_jax.data.dataset import Dataset, load_dataset
from dpt_jax.logging import say
from dpt_jax.methods import PromptConfig
from dpt_jax.model import PromptedCLIP
from dpt_jax.prompts.text import context_tokens, plain_layout, prompt_layout, same_texts
from dpt_jax.runtime import failures
from dpt_jax.storage.weights import local_weights
from dpt_jax.training.fingerprint import fingerprint

# Settings that each host may have its own of: what the paths name is compared instead.
OF_A_HOST = ("clip.weights", "dataset.root", "dataset.sample", "dataset.workers", "init_from")
MOST_NAMED = 5  # groups of classes
REMAT_CHOICES = ("matmuls", "blocks")  # of train.remat=auto


class Frozen(NamedTuple):
    """What every step reads and none changes; replicated over the devices once."""

    clip: Any
    layout: TextLayout  # the learned prompt's texts
    texts: jax.Array  # (C, E) features of the templates, not necessarily normalised
    held: jax.Array | None = None  # (C, E), what losses hold the learned texts to; in training only


class Experiment(NamedTuple):
    """One configuration, ready to run.

    frozen has a leading device axis, and so have the parameters of pretrained,
    which are the same arrays: the host keeps no copy. features: the cache of frozen
    features that experiments of this process share (evaluation.features), or None.
    """

    config: ConfigDict
    dataset: Dataset
    model: PromptedCLIP
    pretrained: Pretrained
    frozen: Frozen
    features: dict[Hashable, Any] | None = None


def prepare(config: ConfigDict, pretrained: Pretrained | None = None) -> Experiment:
    """Load data and backbone, and encode the frozen class texts.

    pretrained: the backbone, where it is loaded already.
    """
    dataset = load_dataset(config.dataset, config.seed)

    def accept(clip: CLIPConfig) -> None:
        """Raise UserError where a tower has no such layers, before its weights are read."""
        # Of words to start from, the tokenizer will say how many tokens they have: until then as
        # many as there should be.
        words = config.text_prompt.init.strip() and not config.text_prompt.fixed_words
        wanted = config.visual_prompt.length if config.visual_prompt.coupled else 1
        tokens = wanted if words else 0
        PromptedCLIP(
            clip,
            settings.prompt_config(config, len(dataset.classnames), clip.vision.layers, tokens),
        )

    if pretrained is None:
        pretrained = load_clip(local_weights(config.clip.weights), compute_dtype(config), accept)
    failures.agree()  # all hosts have read theirs: from here on they need each other
    return assemble(config, dataset, pretrained)


def assemble(config: ConfigDict, dataset: Dataset, pretrained: Pretrained) -> Experiment:
    """Return the experiment of a dataset and a backbone that are loaded."""
    model, plain, layout = model_and_texts(config, dataset.classnames, pretrained)
    _say_same_texts(layout, dataset.classnames)
    model = dataclasses.replace(model, dtype=compute_dtype(config))
    prompts = model.prompts
    remat = config.train.remat
    if remat == "auto":
        images = config.train.microbatch or -(-config.train.batch_size // jax.device_count())
        remat = choose_remat(
            model, text_tokens(prompts, layout, images, jax.device_count()), images
        )
        # Hosts of different memory must not choose different programs.
        remat = REMAT_CHOICES[distributed.of_first(REMAT_CHOICES.index(remat))]
    model = dataclasses.replace(model, remat=remat)
    pretrained = pretrained._replace(params=distributed.replicate(pretrained.params))
    distributed.check_same(lambda: _facts(config, dataset, pretrained, model))
    encode = make_text_encoder(model.clip, model.dtype)
    texts = ensemble([encode(pretrained.params, distributed.replicate(texts)) for texts in plain])
    frozen = Frozen(pretrained.params, distributed.replicate(layout), texts)
    return Experiment(config, dataset, model, pretrained, frozen)


def _facts(
    config: ConfigDict, dataset: Dataset, pretrained: Pretrained, model: PromptedCLIP
) -> dict[str, str]:
    """Return what all hosts must have alike, see `distributed.check_same`."""
    shared = {
        f"--config.{key}": repr(value)
        for key, value in settings.flat(config.to_dict()).items()
        if key not in OF_A_HOST
    }
    found = fingerprint(pretrained, dataset)
    return {
        **shared,
        "CLIP (clip.weights)": repr(found.pop("clip")),
        "list of images (dataset.root, dataset.sample)": repr(found),
    }


def _say_same_texts(layout: TextLayout, classnames: Sequence[str]) -> None:
    """Say on standard error, since standard output may be JSON, which classes are one text."""
    same = [" and ".join(repr(classnames[c]) for c in group) for group in same_texts(layout)]
    if same:
        more = f", and {len(same) - MOST_NAMED} more such" if len(same) > MOST_NAMED else ""
        say(
            "CLIP reads these classes as one text, so it cannot tell them apart: "
            f"{'; '.join(same[:MOST_NAMED])}{more}.",
            file=sys.stderr,
        )


def model_and_texts(
    config: ConfigDict, classnames: Sequence[str], pretrained: Pretrained
) -> tuple[PromptedCLIP, list[TextLayout], TextLayout]:
    """Return the model of these classes, their texts by each template, and those that are learned.

    The model is in float32. pretrained: its parameters are not looked at.
    """
    clip = pretrained.config
    prompts = settings.prompt_config(
        config,
        len(classnames),
        clip.vision.layers,
        len(context_tokens(config.text_prompt.init, pretrained.tokenizer)),
    )
    model = PromptedCLIP(clip, prompts)  # before the texts: it says what does not fit, and why
    plain = plain_layouts(config, classnames, pretrained)
    layout = plain[0]
    if prompts.text_length:
        layout = learned_layout(config, prompts, classnames, pretrained)
    return model, plain, layout


@functools.lru_cache(maxsize=distributed.KEPT_PROGRAMS)
def make_text_encoder(clip: CLIPConfig, dtype: Any) -> Callable[[Any, TextLayout], jax.Array]:
    """Return (parameters of CLIP, texts) -> their features (C, E), pmapped, not normalised.

    One program serves all methods.
    """
    model = PromptedCLIP(clip, PromptConfig(classes=1), dtype)

    def encode(params: Any, texts: TextLayout) -> jax.Array:
        return model.encode_plain({"clip": params}, texts, distributed.AXIS)

    return jax.pmap(encode, distributed.AXIS)


def plain_layouts(
    config: ConfigDict,
    classnames: Sequence[str],
    pretrained: Pretrained,
    key: str = "dataset.template",
) -> list[TextLayout]:
    """Return the texts of the classes by each of the templates of a key."""
    return [
        plain_layout(
            [template.format(name) for name in classnames],
            pretrained.tokenizer,
            pretrained.config.context_length,
        )
        for template in settings.templates(config, key)
    ]


def learned_layout(
    config: ConfigDict, prompts: PromptConfig, classnames: Sequence[str], pretrained: Pretrained
) -> TextLayout:
    """Return the texts of the classes in the learned context."""
    fixed: list[int] = []
    if config.text_prompt.fixed_words:
        fixed = context_tokens(config.text_prompt.init, pretrained.tokenizer)[prompts.text_length :]
    return prompt_layout(
        classnames,
        pretrained.tokenizer,
        prompts.text_length,
        config.text_prompt.class_position,
        prompts.class_specific,
        pretrained.config.context_length,
        fixed,
    )


def text_tokens(prompts: PromptConfig, layout: TextLayout, images: int, devices: int) -> int:
    """Return the tokens of texts that a device takes at a time.

    It shares them with the others, unless they depend on its own images.
    """
    return layout.tokens.size * images if prompts.conditioned else layout.tokens.size // devices


def choose_remat(
    model: PromptedCLIP, text_tokens: int, images: int, memory: float | None = None
) -> str:
    """Return what a backward pass keeps: "matmuls", or "blocks" where memory is short.

    It is short where the results of the matrix products would take more than a third of a device.
    text_tokens, images: those that a device takes at a time. memory: bytes of a device, None for
    those of the local ones.
    """
    needed = 3 * kept_values(model, text_tokens, images) * jnp.dtype(model.dtype).itemsize
    return "blocks" if needed > (memory or distributed.memory()) else "matmuls"


def kept_values(model: PromptedCLIP, text_tokens: int, images: int) -> int:
    """Return how many numbers a backward pass keeps of matrix products, see choose_remat."""
    clip = model.clip
    # Of each tower the tokens of all layers. Prompts that are only looked at keep nothing.
    image = clip.vision.layers * (clip.grid**2 + 1)
    image += model.joined_layers * model.prompts.visual_length
    towers = ((clip.text, clip.text.layers * text_tokens), (clip.vision, images * image))
    return sum(tokens * (5 * tower.width + tower.mlp_width) for tower, tokens in towers)


def ensemble(features: Sequence[jax.Array]) -> jax.Array:
    """Return CLIP's prompt ensemble: the mean of several templates' features (…, E).

    Each template's features are normalised before.
    """
    if len(features) == 1:
        return features[0]
    return sum(f / jnp.linalg.norm(f, axis=-1, keepdims=True) for f in features) / len(features)


def compute_dtype(config: ConfigDict) -> Any:
    """Return float32 or bfloat16; "auto" is float32 on CPU and bfloat16 elsewhere."""
    name = config.dtype
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)
