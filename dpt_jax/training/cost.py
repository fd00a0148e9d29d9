"""What a run costs in images, operations and memory, known before it has run."""

import collections
import functools
from collections.abc import Hashable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from dpt_jax import settings
from dpt_jax.clip.config import CLIPConfig
from dpt_jax.clip.locate import BUNDLED
from dpt_jax.clip.openai import HUB_IDS, MODELS
from dpt_jax.clip.pretrained import Pretrained, load_clip
from dpt_jax.clip.text import TextLayout
from dpt_jax.clip.tokenizer import load_tokenizer
from dpt_jax.data import loader, sampling
from dpt_jax.data.catalogue import CATALOGUE
from dpt_jax.data.dataset import read_splits
from dpt_jax.data.paper.imagenet import imagenet_classnames
from dpt_jax.errors import UserError
from dpt_jax.methods import PROBE
from dpt_jax.model import PromptedCLIP
from dpt_jax.storage.weights import local_weights
from dpt_jax.training import flops
from dpt_jax.training.grid import Overrides, Run, method_config, run_config
from dpt_jax.training.setup import kept_values, model_and_texts, text_tokens


class Sizes(NamedTuple):
    """How many classes and images a dataset has.

    classnames: of unknown names as many of ImageNet's, which are about as long; none where not even
    their number is known. train: images of each class. val, test: images. missing: in words why
    the dataset could not be read, "" where it was or need not be.
    """

    classnames: tuple[str, ...]
    train: tuple[float, ...]
    val: int
    test: int
    missing: str = ""


class Look(NamedTuple):
    """Images of a test split that plain CLIP sees, once for all runs of a process; operations."""

    images: int
    flop: float


class Cost(NamedTuple):
    """What a run costs.

    trained: images, each as often as it is trained on. training, testing: operations.
    looks: the test splits that plain CLIP must have seen. weights, kept: bytes in float32, those of
    CLIP and at least those that a backward pass keeps on one device.
    """

    trained: int
    training: float
    tested: int
    testing: float
    looks: Mapping[Hashable, Look]
    weights: int = 0
    kept: int = 0


class Seen:
    """Adds up costs, of which a test split that plain CLIP sees counts once."""

    def __init__(self, looks: Iterable[Hashable] = ()) -> None:
        """looks: those that were seen before."""
        self.looks = set(looks)

    def add(self, cost: Cost) -> float:
        """Return the operations that a run needs after those before it."""
        new = {key: look.flop for key, look in cost.looks.items() if key not in self.looks}
        self.looks |= new.keys()
        return cost.training + cost.testing + sum(new.values())


class Costs:
    """Counts what runs cost; datasets and the sizes of backbones are read once."""

    def __init__(
        self,
        overrides: Overrides,
        loaded: Mapping[tuple[str, str], Pretrained] | None = None,
        read_all: bool = True,
    ) -> None:
        """loaded: backbones that need not be read, by their `clip.weights` and dtype.

        read_all: whether datasets are read of which there are published numbers.
        """
        self._overrides, self._loaded, self._read_all = overrides, loaded or {}, read_all
        self._sizes: dict[tuple[str, ...], Sizes] = {}
        self._clips: dict[str, Pretrained] = {}
        self._cases: dict[Hashable, tuple[PromptedCLIP, list[TextLayout], TextLayout]] = {}
        self._costs: dict[Run, Cost | None] = {}

    def of(self, run: Run) -> Cost | None:
        """Return what a run costs, None where the number of its images is not known.

        Raise UserError for wrong weights.
        """
        any_seed = run._replace(seed=0)
        if any_seed not in self._costs:
            self._costs[any_seed] = self._of(run)
        return self._costs[any_seed]

    @property
    def missing(self) -> dict[str, Sizes]:
        """Return the datasets that could not be read, by name."""
        named = {name: sizes for (*_, name), sizes in self._sizes.items()}
        return {name: sizes for name, sizes in named.items() if sizes.missing}

    def _of(self, run: Run) -> Cost | None:
        config = run_config(run, self._overrides)
        try:
            clip = self._clip(config.clip.weights)
            cost = self._trained(run, config, clip)
            tested = [(run.dataset, run.classes), *run.targets]
            for dataset, classes in tested:
                cost = self._tested(cost, run, dataset, classes, clip)
        except _UnknownError:
            return None
        return cost

    def _trained(self, run: Run, config: ConfigDict, clip: Pretrained) -> Cost:
        """Return what the training costs, and the weights."""
        sizes = self._sizes_of(config)
        weights = 4 * _parameters(clip.config)
        images = sum(min(n, run.shots) if run.shots >= 0 else n for n in sizes.train)
        if not run.learns:
            return Cost(0, 0.0, 0, 0.0, {}, weights)
        if not np.isfinite(images):
            raise _UnknownError
        images = int(images)
        model, plain, layout = self._case(run, config, sizes, clip)
        if run.method == PROBE.name:  # it sees its images once, and the rest is small
            return Cost(images, flops.plain(model, images + sizes.val), 0, 0.0, {}, weights)
        train = config.train
        steps = loader.steps_per_epoch(images, train.batch_size) * train.epochs
        batch = min(images, train.batch_size)
        guided = config.loss.guidance_epochs > 0
        total = steps * flops.step(model, layout, batch, guided)
        total += sum(flops.text(model, one) for one in plain)
        if model.prompts.held and config.loss.template:
            held = settings.templates(config, "loss.template")
            total += len(held) * flops.text(model, plain[0])
        return Cost(steps * batch, total, 0, 0.0, {}, weights, _kept(model, layout, config, batch))

    def _tested(self, cost: Cost, run: Run, dataset: str, classes: str, clip: Pretrained) -> Cost:
        """Return the cost with that of testing on a dataset, or on half of its classes."""
        config = method_config(run.method, dataset, self._overrides, run.protocol)
        config.dataset.classes = classes
        sizes = self._sizes_of(config)
        model, _, layout = self._case(run, config, sizes, clip)
        flop = flops.answer(model, layout, sizes.test)
        if model.prompts.text_length and not model.prompts.conditioned:
            flop += flops.text(model, layout)
        look = Look(sizes.test, flops.plain(model, sizes.test))
        key = (config.clip.weights, config.dataset.source, config.dataset.root, dataset, classes)
        return cost._replace(
            tested=cost.tested + sizes.test,
            testing=cost.testing + flop,
            looks={**cost.looks, key: look},
        )

    def _case(
        self, run: Run, config: ConfigDict, sizes: Sizes, clip: Pretrained
    ) -> tuple[PromptedCLIP, list[TextLayout], TextLayout]:
        """Return the model of a method on a dataset, the template's texts and the learned ones."""
        key = (run.method, run.protocol, config.dataset.name, config.dataset.classes)
        if key not in self._cases:
            self._cases[key] = model_and_texts(config, sizes.classnames, clip)
        return self._cases[key]

    def _sizes_of(self, config: ConfigDict) -> Sizes:
        dataset = config.dataset
        key = (dataset.source, dataset.root, dataset.name)
        if key not in self._sizes:
            known = dataset.name in CATALOGUE and not self._read_all
            self._sizes[key] = published_sizes(dataset.name) if known else read_sizes(dataset)
        sizes = self._sizes[key]
        if not sizes.classnames:
            raise _UnknownError
        return sizes if dataset.classes == "all" else _half(sizes, dataset.classes)

    def _clip(self, weights: str) -> Pretrained:
        """Return sizes and tokenizer of a backbone, without its parameters where that can be."""
        if weights not in self._clips:
            found = next(
                (clip for (name, _), clip in self._loaded.items() if name == weights), None
            )
            self._clips[weights] = (found or read_backbone(weights))._replace(params=None)
        return self._clips[weights]


class _UnknownError(Exception):
    """What a run costs is not known."""


def read_sizes(config: ConfigDict) -> Sizes:
    """Return the sizes of a whole dataset: counted, else published, else none at all.

    config: that of the dataset.
    """
    try:
        whole = read_splits(config)
    except UserError as reason:
        return published_sizes(config.name)._replace(missing=str(reason))
    counts = collections.Counter(example.label for example in whole.train)
    train = tuple(counts[label] for label in range(len(whole.classnames)))
    return Sizes(whole.classnames, train, len(whole.val), len(whole.test))


def published_sizes(name: str) -> Sizes:
    """Return the sizes of a whole dataset as published, none of one that has no name."""
    if name not in CATALOGUE:
        return Sizes((), (), 0, 0)
    one = CATALOGUE[name]
    # Each class has more training images than shots are asked for.
    names = tuple(imagenet_classnames()[: one.classes])
    return Sizes(names, (np.inf,) * one.classes, 0, one.test_images)


def _half(sizes: Sizes, half: str) -> Sizes:
    """Return the sizes of half of the classes, with their share of the test images."""
    classes = len(sizes.classnames)
    labels = sampling.half_of_classes(classes, half)
    own = slice(labels.start, labels.stop)
    share = len(labels) / classes
    return sizes._replace(
        classnames=sizes.classnames[own],
        train=sizes.train[own],
        val=round(sizes.val * share),
        test=round(sizes.test * share),
    )


def _kept(model: PromptedCLIP, layout: TextLayout, config: ConfigDict, batch: int) -> int:
    """Return the bytes, in float32, that one device keeps for the backward pass."""
    images, prompts = config.train.microbatch or batch, model.prompts
    texts = text_tokens(prompts, layout, images, 1) if prompts.text_length else 0
    return 4 * kept_values(model, texts, images if prompts.sees_prompts else 0)


def read_backbone(weights: str) -> Pretrained:
    """Return the sizes and the tokenizer of a CLIP; those of OpenAI's are known without it."""
    model = next((name for name, hub_id in HUB_IDS.items() if hub_id == weights), None)
    if model is None:
        return load_clip(local_weights(weights))
    # A folder without a vocabulary of its own stands for OpenAI's.
    return Pretrained(MODELS[model], None, load_tokenizer(epath.Path(BUNDLED)))


@functools.cache
def _parameters(clip: CLIPConfig) -> int:
    """Return how many parameters a CLIP has: of its blocks, embeddings and projections.

    `clip.model.param_shapes` would start JAX's backend, which takes the chips of a TPU.
    """
    tokens, patch = clip.grid**2 + 2, 3 * clip.patch_size**2
    vision, text = clip.vision, clip.text
    blocks = sum(
        tower.layers * tower.width * (4 * tower.width + 2 * tower.mlp_width)
        for tower in (vision, text)
    )
    embeddings = vision.width * (tokens + patch) + text.width * (
        clip.vocab_size + clip.context_length
    )
    return blocks + embeddings + clip.embed_dim * (vision.width + text.width)
