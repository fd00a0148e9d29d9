"""Evaluation: predictions on the whole test split, and the cached features of frozen CLIP."""

import functools
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict
from jax.typing import ArrayLike, DTypeLike

from dpt_jax import distributed
from dpt_jax.clip.blocks import Params, PyTree
from dpt_jax.clip.config import CLIPConfig
from dpt_jax.data import loader
from dpt_jax.data.records import Example
from dpt_jax.errors import UserError
from dpt_jax.evaluation.metrics import Predictions
from dpt_jax.evaluation.results import write_results
from dpt_jax.logging import Progress, quiet
from dpt_jax.model import Outputs, PromptedCLIP, Texts, apply
from dpt_jax.prompts import Prompts
from dpt_jax.prompts.config import PromptConfig
from dpt_jax.training.checkpoints import Saved
from dpt_jax.training.setup import Experiment, shared_loading

# The batches of a test split with the features of frozen CLIP, without images. No prompt changes
# them, so the runs of a sweep compute them once.
FeatureCache = dict[Hashable, list[loader.Batch]]


class Programs(NamedTuple):
    """Compiled programs; every argument and result has a leading device axis.

    Attributes:
      encode_texts: (CLIP's parameters, prompts, texts) -> the texts, encoded.
      classify: (CLIP's parameters, prompts, encoded texts, images (devices, b, H, W, 3)) ->
        outputs of the model.
      encode_images: (CLIP's parameters, images) -> features of frozen CLIP (devices, b, E).
      logits: (CLIP's parameters, prompts, encoded texts, images, features) -> logits
        (devices, b, C) of the method and of zero-shot CLIP. Methods that do not change the image
        tower need no images.
      merge: (CLIP's parameters, prompts) -> prompts with learned weights merged into CLIP's. The
        other programs take merged or unmerged ones.
    """

    encode_texts: Callable[[Params, Prompts, Texts], Texts]
    classify: Callable[[Params, Prompts, Texts, ArrayLike], Outputs]
    encode_images: Callable[[Params, ArrayLike], jax.Array]
    logits: Callable[
        [Params, Prompts, Texts, ArrayLike | None, jax.Array], tuple[jax.Array, jax.Array]
    ]
    merge: Callable[[Params, Prompts], Prompts]


@functools.lru_cache(maxsize=distributed.KEPT_PROGRAMS)
def make_programs(model: PromptedCLIP, devices: tuple[jax.Device, ...] | None = None) -> Programs:
    """Return the programs of an evaluation, for the local devices by default."""

    def encode_texts(clip: Params, prompts: Prompts, texts: Texts) -> Texts:
        return apply(model, clip, prompts, texts, distributed.AXIS, method="texts")

    def classify(clip: Params, prompts: Prompts, texts: Texts, images: jax.Array) -> Outputs:
        outputs = apply(model, clip, prompts, images, texts)
        return outputs._replace(auxiliary_logits=None)

    def merge(clip: Params, prompts: Prompts) -> Prompts:
        return apply(model, clip, prompts, method="merge")

    def logits(
        clip: Params,
        prompts: Prompts,
        texts: Texts,
        images: jax.Array | None,
        features: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        own = functools.partial(apply, model, clip, prompts)
        zero_shot = own(features, texts, method="zero_shot_of")
        return own(images, texts, zero_shot).logits, zero_shot.logits

    pmap = functools.partial(jax.pmap, axis_name=distributed.AXIS, devices=devices)
    return Programs(
        pmap(encode_texts),
        pmap(classify),
        _make_image_encoder(model.clip_config, jnp.dtype(model.dtype), devices),
        pmap(logits),
        pmap(merge) if model.config.weights.kind else lambda _, prompts: prompts,
    )


@functools.lru_cache(maxsize=distributed.KEPT_PROGRAMS)
def _make_image_encoder(
    clip: CLIPConfig, dtype: DTypeLike, devices: tuple[jax.Device, ...] | None
) -> Callable[[Params, ArrayLike], jax.Array]:
    """Return one program for all methods."""
    model = PromptedCLIP(clip, PromptConfig(classes=1), dtype)

    def encode_images(clip: Params, images: jax.Array) -> jax.Array:
        return apply(model, clip, {}, images, method="encode_image")

    return jax.pmap(encode_images, axis_name=distributed.AXIS, devices=devices)


def predict(
    experiment: Experiment, prompts: Prompts, examples: list[Example] | None = None
) -> Predictions:
    """Return logits of the method and of zero-shot CLIP for images, by default the test split.

    Raises:
      UserError: No image can be read, or logits are not finite.
    """
    if examples is None:
        examples = experiment.dataset.test
    model, clip = experiment.model, experiment.pretrained.params
    programs = make_programs(model)
    replicated = programs.merge(clip, distributed.replicate(prompts))
    texts = programs.encode_texts(clip, replicated, experiment.texts)

    def logits(batch: loader.Batch) -> tuple[jax.Array, jax.Array]:
        images = batch["image"] if model.config.learns_images else None
        return programs.logits(clip, replicated, texts, images, batch["features"])

    (own, zero_shot), label, row = over_images(experiment, examples, logits)
    if not len(label):
        raise UserError(
            f"{experiment.config.dataset.name}: none of its {len(examples)} test images can be "
            "read."
        )
    answers = {
        "the logits of zero-shot CLIP": zero_shot,
        f"the logits of {experiment.config.method}": own,
    }
    check_finite(answers, prompts, clip)
    return Predictions(own, zero_shot, label, row)


def validation(experiment: Experiment) -> Callable[[Prompts], float]:
    """Return a function from replicated prompts to their accuracy on the validation images."""
    experiment = experiment._replace(features={})

    def accuracy(prompts: Prompts) -> float:
        with quiet():
            found = predict(experiment, prompts, experiment.dataset.val)
        return float((found.logits.argmax(-1) == found.label).mean())

    return accuracy


def over_images(
    experiment: Experiment,
    examples: list[Example],
    compute: Callable[[loader.Batch], PyTree],
    title: str = "evaluate",
) -> tuple[PyTree, np.ndarray, np.ndarray]:
    """Apply `compute` to batches of images, which all devices of all hosts share.

    Args:
      experiment: Its dataset reads the images.
      examples: The images.
      compute: From a batch with `features` (devices, b, E), of frozen CLIP, and for methods with
        visual prompts `image` (devices, b, H, W, 3), to a tree of arrays (devices, b, …).
      title: Title of the progress bar.

    Returns:
      The results, arrays (N, …) of the N readable images; their label (N,), and row (N,) in
      `examples`.
    """
    hosts = jax.process_count()
    rows = -(-min(experiment.config.eval.batch_size, len(examples)) // hosts)
    batches = _with_features(experiment, examples, rows)
    with Progress(title, -(-len(examples) // (rows * hosts))) as progress:
        results, known = distributed.over_all_rows(progress.track(batches), compute, len(examples))
    readable = known["weight"] > 0
    results, label, row = jax.tree.map(
        lambda x: x[readable], (results, known["label"], known["index"])
    )
    return results, label, row


def _with_features(
    experiment: Experiment, examples: list[Example], rows: int
) -> Iterator[loader.Batch]:
    """Yield this host's batches of `rows` images with their features, see `over_images`.

    Cached features are not computed again. Images are read again only for methods with visual
    prompts.
    """
    config, read, model = experiment.config, experiment.dataset.read, experiment.model
    # Runs that name the same weights share them. Other batches would give other bits.
    key = (
        tuple((read.key(example.path), example.label) for example in examples),
        *(config.dataset.on_error, config.clip.weights, model.dtype, model.clip_config, rows),
    )
    cache = {} if experiment.features is None else experiment.features
    # All hosts encode together or none does.
    cached = cache.get(key) if distributed.on_all_hosts(key in cache) else None
    if cached and not model.config.learns_images:
        yield from cached
        return
    encode, clip = make_programs(model).encode_images, experiment.pretrained.params
    loading = loader.Loading(**shared_loading(experiment), examples=examples, batch_size=rows)
    encoded = []
    for number, batch in enumerate(loader.test_batches(loading)):
        images = loader.shard(batch, rows, jax.local_device_count())["image"]
        features = cached[number]["features"] if cached else encode(clip, images)
        known = {name: batch[name] for name in ("label", "index", "weight")}
        encoded.append(known | {"features": features})
        yield encoded[-1] | {"image": images}
    cache[key] = encoded


def check_finite(results: Mapping[str, np.ndarray], prompts: Prompts, clip: Params) -> None:
    """Raise UserError if an array is not finite, naming the parameter that is the likely cause.

    results: Arrays by their names in the message, those of frozen CLIP first.
    """
    for what, array in results.items():
        if np.isfinite(array).all():
            continue
        leaves = flatten_dict({"prompt": prompts, "weight of CLIP": clip})
        for (whose, *name), value in leaves.items():
            if not bool(jnp.isfinite(value).all()):
                tensor = f"{whose} {'.'.join(name)}"
                raise UserError(f"{what} are not finite: the {tensor} has such values.")
        raise UserError(f"{what} are not finite: try dtype=float32, or check the weights.")


def evaluate(experiment: Experiment, saved: Saved, workdir: epath.Path) -> dict[str, Any]:
    """Predict the test split, write results.json to a workdir, and return the results.

    With eval.save_logits, predictions.npz is written too.

    Raises:
      UserError: Logits are not finite, no image can be read, or a file cannot be written.
    """
    distributed.check_same(lambda: {"prompt to evaluate": saved.digest})
    return write_results(experiment, predict(experiment, saved.prompts), saved, workdir)
