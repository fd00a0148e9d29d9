"""Evaluation: predictions on the whole test split, and the cached features of frozen CLIP."""

import functools
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.typing import ArrayLike, DTypeLike

from dpt_jax import distributed
from dpt_jax.clip.blocks import Params
from dpt_jax.clip.config import CLIPConfig
from dpt_jax.data import loader
from dpt_jax.errors import UserError
from dpt_jax.evaluation.metrics import Predictions
from dpt_jax.evaluation.results import write_results
from dpt_jax.logging import Progress, quiet
from dpt_jax.model import Outputs, PromptedCLIP, Texts, apply
from dpt_jax.prompts import Prompts
from dpt_jax.prompts.config import PromptConfig
from dpt_jax.training.checkpoints import Saved
from dpt_jax.training.setup import Experiment, Frozen, shared_loading


class EncodedBatch(NamedTuple):
    """A batch of this host's test images, padded and split over its devices.

    Attributes:
        known: label, index and weight of the images, without padding.
        images: (devices, b, H, W, 3) uint8, or None if only the features are cached.
        features: (devices, b, E) float32, of frozen CLIP.
    """

    known: loader.Batch
    images: np.ndarray | None
    features: jax.Array


# The batches, without images, of each test split that this process has evaluated on. No prompt
# changes the features of frozen CLIP, so the runs of a sweep compute them once.
FeatureCache = dict[Hashable, list[EncodedBatch]]


class Programs(NamedTuple):
    """Compiled programs; every argument and result has a leading device axis.

    Attributes:
      encode_texts: (frozen, prompts) -> the texts of the classes.
      classify: (frozen, prompts, texts, images (devices, b, H, W, 3)) -> outputs of the model.
      encode_images: (CLIP's parameters, images) -> features of frozen CLIP (devices, b, E). The
        same program serves all methods.
      logits: (frozen, prompts, texts, images, features) -> logits (devices, b, C) of the method
        and of zero-shot CLIP. Methods that do not change the image tower need no images.
      merge: (CLIP's parameters, prompts) -> prompts with learned weights merged into CLIP's. The
        other programs take merged or unmerged ones.
    """

    encode_texts: Callable[[Frozen, Prompts], Texts]
    classify: Callable[[Frozen, Prompts, Texts, ArrayLike], Outputs]
    encode_images: Callable[[Params, ArrayLike], jax.Array]
    logits: Callable[
        [Frozen, Prompts, Texts, ArrayLike | None, jax.Array], tuple[jax.Array, jax.Array]
    ]
    merge: Callable[[Params, Prompts], Prompts]


@functools.lru_cache(maxsize=distributed.KEPT_PROGRAMS)
def make_programs(model: PromptedCLIP, devices: tuple[jax.Device, ...] | None = None) -> Programs:
    """Return the programs of an evaluation, for the local devices by default."""

    def encode_texts(frozen: Frozen, prompts: Prompts) -> Texts:
        own = frozen.packed, frozen.texts, distributed.AXIS
        return apply(model, frozen.clip, prompts, *own, mean=frozen.mean, method="texts")

    def classify(frozen: Frozen, prompts: Prompts, texts: Texts, images: jax.Array) -> Outputs:
        outputs = apply(model, frozen.clip, prompts, images, texts)
        return outputs._replace(auxiliary_logits=None)

    def merge(clip: Params, prompts: Prompts) -> Prompts:
        return apply(model, clip, prompts, method="merge")

    def logits(
        frozen: Frozen,
        prompts: Prompts,
        texts: Texts,
        images: jax.Array | None,
        features: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        own = functools.partial(apply, model, frozen.clip, prompts)
        zero_shot = own(features, texts, method="zero_shot_of")
        if images is None:
            outputs = own(texts, zero_shot, method="classify")
        else:
            outputs = own(images, texts, zero_shot)
        return outputs.logits, zero_shot.logits

    return Programs(
        jax.pmap(encode_texts, axis_name=distributed.AXIS, devices=devices),
        jax.pmap(classify, axis_name=distributed.AXIS, devices=devices),
        _make_image_encoder(model.clip_config, jnp.dtype(model.dtype), devices),
        jax.pmap(logits, axis_name=distributed.AXIS, devices=devices),
        jax.pmap(merge, devices=devices)
        if model.config.weights.kind
        else lambda _, prompts: prompts,
    )


@functools.lru_cache(maxsize=distributed.KEPT_PROGRAMS)
def _make_image_encoder(
    clip: CLIPConfig, dtype: DTypeLike, devices: tuple[jax.Device, ...] | None
) -> Callable[[Params, ArrayLike], jax.Array]:
    model = PromptedCLIP(clip, PromptConfig(classes=1), dtype)

    def encode_images(params: Params, images: jax.Array) -> jax.Array:
        variables = {"params": {"clip": params}}
        return jnp.asarray(model.apply(variables, images, method="encode_image"))

    return jax.pmap(encode_images, axis_name=distributed.AXIS, devices=devices)


def predict(experiment: Experiment, prompts: Prompts) -> Predictions:
    """Return logits of the method and of zero-shot CLIP for the test split.

    Raises:
      UserError: None of its images can be read.
    """
    dataset, model = experiment.dataset, experiment.model
    programs = make_programs(model)
    prompts = programs.merge(experiment.frozen.clip, distributed.replicate(prompts))
    texts = programs.encode_texts(experiment.frozen, prompts)

    def logits(batch: EncodedBatch) -> tuple[jax.Array, jax.Array]:
        images = batch.images if model.config.learns_images else None
        return programs.logits(experiment.frozen, prompts, texts, images, batch.features)

    found = Predictions(*over_test_images(experiment, "evaluate", logits))
    if not len(found.label):
        raise UserError(
            f"{experiment.config.dataset.name}: none of its {len(dataset.test)} test images can "
            "be read."
        )
    return found


def validation(experiment: Experiment) -> Callable[[Prompts], float]:
    """Return a function from replicated prompts to their accuracy on the validation images."""
    dataset = experiment.dataset._replace(test=experiment.dataset.val)
    own = experiment._replace(dataset=dataset, features={})

    def accuracy(prompts: Prompts) -> float:
        with quiet():
            found = predict(own, prompts)
        return float((found.logits.argmax(-1) == found.label).mean())

    return accuracy


def over_test_images(
    experiment: Experiment,
    title: str,
    compute: Callable[[EncodedBatch], tuple[jax.Array, ...]],
) -> list[np.ndarray]:
    """Apply `compute` to batches of the test images; return what it gives for readable ones.

    All devices of all hosts share a batch: host h of n takes images h, h + n, h + 2n and so on.

    Args:
      experiment: Its test split is read.
      title: Title of the progress bar.
      compute: From a batch to arrays (devices, b, …).

    Returns:
      These columns (N, …) of the N readable images, then label (N,) and row (N,), the index into
      the test split. All hosts have all rows.
    """
    images, hosts = len(experiment.dataset.test), jax.process_count()
    rows = -(-min(experiment.config.eval.batch_size, images) // hosts)
    steps = -(-images // (rows * hosts))
    batches = _read_test_images(experiment, rows, steps)
    parts = []
    with Progress(title, steps) as progress:
        for batch, columns in distributed.overlapped(
            batches, compute, lambda x: len(x.known["label"])
        ):
            parts.append((*columns, *(batch.known[name] for name in ("label", "index", "weight"))))
            progress.advance()

    # The last hosts may have fewer images. Their padding has weight 0.
    *columns, weight = (
        distributed.rows_of_all_hosts(np.concatenate(own), rows * steps)
        for own in zip(*parts, strict=True)
    )
    return [column[weight > 0] for column in columns]


def _read_test_images(experiment: Experiment, rows: int, steps: int) -> Iterator[EncodedBatch]:
    """Yield this host's test images with their features.

    Cached features are not computed again. Images are read again only for methods with visual
    prompts.

    Args:
        experiment: its `features` is the cache, or None for no cache.
        rows: images of a batch on this host.
        steps: number of batches, the same on all hosts. The last ones may be empty.
    """
    cache, key = experiment.features, _key(experiment, rows)
    cached = cache.get(key) if cache is not None else None
    # All hosts encode together or none does.
    if not distributed.on_all_hosts(cached is not None):
        cached = None
    if cached and not experiment.model.config.learns_images:
        yield from cached
        return
    encode = make_programs(experiment.model).encode_images
    loading = loader.Loading(
        **shared_loading(experiment), examples=experiment.dataset.test, batch_size=rows
    )
    batches, nothing, read = loader.test_batches(loading), loader.no_images(loading.size), []
    for step in range(steps):
        batch = next(batches, nothing)
        images = loader.shard(batch, rows, jax.local_device_count())["image"]
        features = cached[step].features if cached else encode(experiment.frozen.clip, images)
        known = {name: batch[name] for name in ("label", "index", "weight")}
        read.append(EncodedBatch(known, None, features))
        yield EncodedBatch(known, images, features)
    if cache is not None:
        cache[key] = read


def _key(experiment: Experiment, rows: int) -> Hashable:
    """Return what the features depend on: images, CLIP and how they are batched.

    CLIP counts by its name: runs of one process that name the same weights share them.
    """
    config, dataset, model = experiment.config, experiment.dataset, experiment.model
    images = tuple((dataset.read.key(example.path), example.label) for example in dataset.test)
    return (
        images,
        config.dataset.on_error,
        config.clip.weights,
        model.dtype,
        model.clip_config,
        rows,
    )


def check_finite(results: Mapping[str, np.ndarray], prompts: Prompts, clip: Params) -> None:
    """Raise UserError if an array is not finite, naming the parameter that is the likely cause.

    Args:
      results: Arrays by their names in the message, those of frozen CLIP first.
      prompts: The learned parameters.
      clip: CLIP's parameters.
    """
    for what, array in results.items():
        if np.isfinite(array).all():
            continue
        tree = {"prompt": prompts, "weight of CLIP": clip}
        leaves = flax.traverse_util.flatten_dict(tree)
        for (whose, *name), value in leaves.items():
            if not bool(jnp.isfinite(value).all()):
                name = ".".join(name)
                raise UserError(f"{what} are not finite: the {whose} {name} has such values.")
        raise UserError(f"{what} are not finite: try dtype=float32, or check the weights.")


def evaluate(experiment: Experiment, saved: Saved, workdir: epath.Path) -> dict[str, Any]:
    """Predict and write results.json; return the results.

    Args:
      experiment: The dataset, and the CLIP of the prompts.
      saved: The prompts with their record.
      workdir: Where results.json goes, and predictions.npz with eval.save_logits.

    Raises:
      UserError: Logits are not finite, no image can be read, or a file cannot be written.
    """
    distributed.check_same(lambda: {"prompt to evaluate": saved.digest})
    found = predict(experiment, saved.prompts)
    answers = {
        "the logits of zero-shot CLIP": found.zero_shot_logits,
        f"the logits of {experiment.config.method}": found.logits,
    }
    check_finite(answers, saved.prompts, experiment.frozen.clip)
    return write_results(experiment, found, saved, workdir)
