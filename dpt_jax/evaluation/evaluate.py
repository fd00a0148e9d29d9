"""Evaluation: predictions on the whole test split, and the cached features of frozen CLIP."""

import functools
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict

from dpt_jax import distributed
from dpt_jax.clip.blocks import Params, PyTree
from dpt_jax.data import loader
from dpt_jax.data.records import Example
from dpt_jax.errors import UserError
from dpt_jax.evaluation.results import Predictions, write_results
from dpt_jax.logging import Progress, quiet, say
from dpt_jax.model import Outputs, PromptedCLIP, Texts, apply
from dpt_jax.prompts import Prompts
from dpt_jax.training.checkpoints import Saved
from dpt_jax.training.setup import Experiment, frozen_clip, loading

# Inverse strengths of the probe's regularisation, the strongest first. They are large since
# features have unit length.
STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
MOST_ITERATIONS = 5000


def merged_and_encoded(experiment: Experiment, prompts: Prompts) -> tuple[Prompts, Texts]:
    """Return replicated prompts, with learned weights merged into CLIP's, and the encoded texts."""
    model, clip = experiment.model, experiment.pretrained.params
    prompts = distributed.replicate(prompts)
    if model.config.weights.kind:
        prompts = distributed.on_devices(merge, model)(clip, prompts)
    encode = distributed.on_devices(encode_classes, model)
    return prompts, encode(clip, prompts, experiment.texts)


# The following are for `distributed.on_devices`.
def merge(model: PromptedCLIP, clip: Params, prompts: Prompts) -> Prompts:
    """Return prompts with learned weights merged into CLIP's."""
    return apply(model, clip, prompts, method="merge")


def encode_classes(model: PromptedCLIP, clip: Params, prompts: Prompts, texts: Texts) -> Texts:
    """Return the texts of the classes, encoded."""
    return apply(model, clip, prompts, texts, distributed.AXIS, method="texts")


def encode_images(model: PromptedCLIP, clip: Params, images: jax.Array) -> jax.Array:
    """Return the features (b, E) of frozen CLIP."""
    return apply(model, clip, {}, images, method="encode_image")


def classify(
    model: PromptedCLIP, clip: Params, prompts: Prompts, texts: Texts, images: jax.Array
) -> Outputs:
    """Return the outputs of the model for images (b, H, W, 3)."""
    return apply(model, clip, prompts, images, texts)._replace(auxiliary_logits=None)


def logits_of(
    model: PromptedCLIP,
    clip: Params,
    prompts: Prompts,
    texts: Texts,
    images: jax.Array | None,
    features: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Return logits (b, C) of the method and of zero-shot CLIP, for images with known features.

    Methods that do not change the image tower need no images.
    """
    own = functools.partial(apply, model, clip, prompts)
    zero_shot = own(features, texts, method="zero_shot_of")
    return own(images, texts, zero_shot).logits, zero_shot.logits


def predict(
    experiment: Experiment, prompts: Prompts, examples: list[Example] | None = None
) -> Predictions:
    """Return logits of the method and of zero-shot CLIP for images, by default the test split.

    Raises:
      UserError: There is no image, none can be read, or logits are not finite.
    """
    if examples is None:
        examples = experiment.dataset.test
    if not examples:
        data = experiment.config.dataset
        raise UserError(
            f"{data.name} has no test images of the classes to evaluate (dataset.classes="
            f"{data.classes}): add some to its folder test/, or evaluate other classes."
        )
    model, clip = experiment.model, experiment.pretrained.params
    merged, texts = merged_and_encoded(experiment, prompts)
    answer = distributed.on_devices(logits_of, model)

    def logits(batch: loader.Batch) -> tuple[jax.Array, jax.Array]:
        images = batch["image"] if model.config.learns_images else None
        return answer(clip, merged, texts, images, batch["features"])

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


def predict_by_probe(experiment: Experiment) -> Predictions:
    """Predict the test split with a linear probe, a baseline: what the frozen features separate.

    A probe is fitted to the training images with each of STRENGTHS. The one with the highest
    accuracy on the validation images (at most 4 per class, as in few-shot protocols) is used. Ties
    go to the strongest regularisation. Logits are log-probabilities.

    Raises:
      UserError: There is no validation split, a class has no readable training image, or
        scikit-learn is not installed.
    """
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as reason:
        raise UserError("the probe needs scikit-learn: `pip install scikit-learn`.") from reason
    dataset, name = experiment.dataset, experiment.config.dataset.name
    if not dataset.val:
        raise UserError(
            f"{name} has no validation images, on which the probe chooses its regularisation: "
            "add a folder val/ next to train/ and test/."
        )
    found = predict(experiment, {})  # zero-shot CLIP and the probe classify the same features
    features = functools.partial(
        over_images, experiment, compute=operator.itemgetter("features"), title="encode"
    )
    train, label, _ = features(dataset.train)
    val, val_label, _ = features(dataset.val)
    test, _, _ = features(dataset.test)
    # The columns of a fitted probe are the classes that it has seen.
    if unseen := sorted({*range(len(dataset.classnames))} - {*label.tolist()}):
        raise UserError(
            f"{name}: no training image of class {dataset.classnames[unseen[0]]!r} can be read: "
            "repair them or remove the class."
        )
    if not len(val_label):
        raise UserError(f"{name}: none of its {len(dataset.val)} validation images can be read.")
    fitted = [
        LogisticRegression(C=strength, max_iter=MOST_ITERATIONS).fit(train, label)
        for strength in STRENGTHS
    ]
    accuracies = [float((one.predict(val) == val_label).mean()) for one in fitted]
    best = int(np.argmax(accuracies))
    say(
        f"probe: fitted to {len(label)} training images; C = {STRENGTHS[best]:g} gets "
        f"{100 * accuracies[best]:.1f} % of {len(val_label)} validation images right "
        f"(at most {np.bincount(val_label).max()} per class)."
    )
    return found._replace(logits=fitted[best].predict_log_proba(test).astype(np.float32))


def validation_accuracy(experiment: Experiment, prompts: Prompts) -> float:
    """Return the accuracy of prompts on the validation images."""
    with quiet():
        found = predict(experiment, prompts, experiment.dataset.val)
    return float((found.logits.argmax(-1) == found.label).mean())


def over_images(
    experiment: Experiment,
    examples: list[Example],
    compute: Callable[[loader.Batch], PyTree],
    title: str = "evaluate",
) -> tuple[PyTree, np.ndarray, np.ndarray]:
    """Apply `compute` to batches of images, which all devices of all hosts share.

    compute: From a batch with `features` (devices, b, E), of frozen CLIP, and for methods with
    visual prompts `image` (devices, b, H, W, 3), to a tree of arrays (devices, b, …).

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
    cache = experiment.features
    # All hosts encode together or none does.
    cached = cache.get(key) if distributed.on_all_hosts(key in cache) else None
    if cached and not model.config.learns_images:
        yield from cached
        return
    # All methods share one program.
    encode = distributed.on_devices(encode_images, frozen_clip(model))
    encoded = []
    for number, batch in enumerate(loader.test_batches(loading(experiment, examples, rows))):
        images = loader.shard(batch, rows, jax.local_device_count())["image"]
        features = (
            cached[number]["features"] if cached else encode(experiment.pretrained.params, images)
        )
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
