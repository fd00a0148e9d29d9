"""The second stage of training: a classifier on cached features, in one compiled loop."""

import functools
import itertools
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from dpt_jax import distributed
from dpt_jax.clip.blocks import Array, Params, PyTree
from dpt_jax.clip.model import normalize
from dpt_jax.data import loader
from dpt_jax.errors import UserError
from dpt_jax.logging import Progress, say
from dpt_jax.methods import CLASSIFIER
from dpt_jax.model import EXACT, PromptedCLIP, Texts, apply
from dpt_jax.prompts import Prompts
from dpt_jax.prompts.classifiers import CLASSIFIERS, ClassTexts, Support
from dpt_jax.training.losses import cross_entropy
from dpt_jax.training.metrics import metric_writer
from dpt_jax.training.optimizer import OPTIMIZERS, WARMUP_LR
from dpt_jax.training.setup import Experiment, loading
from dpt_jax.training.state import CLASSIFIER_STEPS, ENDED, Saver, Stopped, StopRequest
from dpt_jax.training.step import TrainState


class Course(NamedTuple):
    """Metrics of each step."""

    loss: Array  # (steps,), before the update, with the penalty
    hits: Array  # (steps,), images of the batch that were classified right
    images: Array  # (steps,), images of the batch


class Trained(NamedTuple):
    """A trained classifier."""

    params: Params  # host arrays
    epochs: list[tuple[int, dict[str, float]]]  # last step and mean metrics of each
    chosen: dict[str, float]  # the settings chosen on held-out training images, by key


def with_classifier(
    state: TrainState, saver: Saver, stop: StopRequest, workdir: epath.Path
) -> Prompts:
    """Return the prompts of a state after the last epoch, with a trained classifier.

    If stopped, the classifier is trained again from the start, with the same result.
    """
    experiment, plan = saver.experiment, saver.plan
    config, dataset = experiment.config, experiment.dataset
    say(
        f"Training the classifier {config.classifier.name} on {len(dataset.train)} images of "
        f"{len(dataset.classnames)} classes."
    )
    began, before = time.perf_counter(), int(state.step)
    batches = itertools.count(before + 1)

    def end_if_asked(when: str = "before") -> None:
        if stop.after(next(batches)):
            say(f"stopped {when} the classifier was trained: the same command resumes there.")
            raise Stopped

    support, class_texts = encode_support(experiment, state.prompts, end_if_asked)
    encoded = time.perf_counter()
    trained = fit(config, support, class_texts)
    with metric_writer(workdir, before) as write:
        for steps, values in trained.epochs:
            values["epoch"] += plan.epoch(before)
            write(before + steps, values)
    views, images = support.views.shape[:2]
    say(
        f"{views * images} views encoded in {encoded - began:.1f} s, {steps} steps in "
        f"{time.perf_counter() - encoded:.1f} s: loss {values['loss']:.4f}  accuracy "
        f"{values['accuracy']:.3f}"
    )
    prompts = {**state.prompts, CLASSIFIER: trained.params}
    more = {CLASSIFIER_STEPS: steps, ENDED: before < plan.steps, "chosen": trained.chosen}
    saver.save(state._replace(prompts=prompts), **more)
    saver.checkpoints.wait()
    end_if_asked("after")
    return prompts


def encode_support(
    experiment: Experiment, prompts: Prompts, before_batch: Callable[[], object]
) -> tuple[Support, ClassTexts]:
    """Encode views of the training images, and the class texts, with the method's trained towers.

    The views that the classifier starts from are followed by those of its epochs if different. All
    hosts get all of them. before_batch: called before each batch, equally often on all hosts; an
    exception ends encoding.
    """
    config, dataset, model = experiment.config, experiment.dataset, experiment.model
    # Augmented views that the classifier starts from, and those that its epochs take.
    start = later = 0
    if config.train.augment or config.train.shift:
        start, later = config.classifier.views, config.classifier.train_views
        if later < 0:
            steps, per_epoch = length(config, len(dataset.train))
            later = -(-steps // per_epoch)
    encode_images = distributed.on_devices(_encode_images, model)
    clip, prompts = experiment.pretrained.params, distributed.replicate(prompts)
    texts, class_texts = distributed.on_devices(_encode_texts, model)(
        clip, prompts, experiment.texts
    )
    hosts, devices = jax.process_count(), jax.local_device_count()
    rows = -(-min(config.eval.batch_size, len(dataset.train)) // hosts)

    def compute(batch: loader.Batch) -> jax.Array:
        before_batch()
        pixels = loader.shard(batch, rows, devices)["image"]
        return encode_images(clip, prompts, texts, pixels)

    def encode(batches: Iterator[loader.Batch], views: int) -> tuple[np.ndarray, np.ndarray]:
        """Return features (views, N, E) and weights (views, N)."""
        total = views * len(dataset.train)
        with Progress("encode", -(-total // (rows * hosts))) as progress:
            features, known = distributed.over_all_rows(progress.track(batches), compute, total)
        return features.reshape(views, -1, features.shape[-1]), known["weight"].reshape(views, -1)

    how = loading(experiment, dataset.train, rows, least_area=config.classifier.least_area)
    encoded = []
    if not start:
        encoded.append(encode(loader.test_batches(how), 1))
    if start + later:
        encoded.append(encode(loader.test_batches(how, start + later), start + later))
    views, weights = (np.concatenate(x) for x in zip(*encoded, strict=True))
    labels = np.array([example.label for example in dataset.train], np.int32)
    readable = weights[0] > 0
    support = Support(jnp.asarray(views[:, readable]), jnp.asarray(labels[readable]))
    return support, jax.tree.map(jnp.asarray, distributed.to_host(class_texts))


# For `distributed.on_devices`.
def _encode_texts(
    model: PromptedCLIP, clip: Params, prompts: Prompts, texts: Texts
) -> tuple[Texts, ClassTexts]:
    own = functools.partial(apply, model, clip, prompts)
    texts = own(texts, distributed.AXIS, method="texts")
    return texts, own(texts, method="class_texts")


def _encode_images(
    model: PromptedCLIP, clip: Params, prompts: Prompts, texts: Texts, images: jax.Array
) -> jax.Array:
    return apply(model, clip, prompts, images, texts, method="image_features")


def fit(config: ConfigDict, support: Support, texts: ClassTexts) -> Trained:
    """Train the classifier of a configuration on what `encode_support` returns.

    With classifier.select=support, the settings of the grid that are best on the last image of each
    class are chosen first. Raise UserError if the loss or a parameter is not finite.
    """
    if config.classifier.select == "none":
        return train_classifier(config, support, texts)
    classifier, labels = CLASSIFIERS[config.classifier.name], np.asarray(support.labels)
    _, last = np.unique(labels[::-1], return_index=True)
    held = np.zeros(len(labels), bool)
    held[len(labels) - 1 - last] = True
    others = Support(support.views[:, ~held], support.labels[~held])
    features, truth = normalize(support.views[0, held]), support.labels[held]
    scores = []
    for values in itertools.product(*classifier.grid.values()):
        chosen = dict(zip(classifier.grid, values, strict=True))
        if "lr" in chosen:
            chosen["lr"] *= config.classifier.lr
        tried = config.copy_and_resolve_references()
        tried.classifier.update(chosen)
        params = train_classifier(tried, others, texts).params
        logits = classifier.logits(params, features, texts)
        accuracy = float((logits.argmax(-1) == truth).mean())
        # Ties are broken by the lower cross-entropy.
        scores.append((accuracy, -float(cross_entropy(logits, truth).mean()), tried, chosen))
    accuracy, _, best, chosen = max(scores, key=lambda score: score[:2])
    chosen = {f"classifier.{key}": value for key, value in chosen.items()}
    words = ", ".join(f"{key}={value:g}" for key, value in chosen.items())
    say(f"settings chosen on one image per class: {words} ({100 * accuracy:.0f} % correct).")
    return train_classifier(best, support, texts)._replace(chosen=chosen)


def train_classifier(config: ConfigDict, support: Support, texts: ClassTexts) -> Trained:
    """Train the classifier with the given settings, see `fit`."""
    settings, classifier = config.classifier, CLASSIFIERS[config.classifier.name]
    first, images = max(settings.views, 1), len(support.labels)
    cached, later = Support(support.views[:first], support.labels), support.views[first:]
    params = classifier.start(cached, texts, jax.random.key(config.seed), settings)
    steps, per_epoch = length(config, images)
    rates: dict[str, np.ndarray] = {}
    if classifier.learned:
        pool = later if len(later) else cached.views
        rates = learning_rates(settings, cached, texts, steps, per_epoch)
        batches = draw_batches(settings, images, len(pool), steps, config.seed)
        features = normalize(pool).reshape(-1, pool.shape[-1])
        labels = jnp.tile(support.labels, len(pool))
        params, course = train_on_features(
            settings.name, params, features, labels, texts, batches, rates, settings.weight_decay
        )
    else:
        logits = classifier.logits(params, normalize(cached.views[0]), texts)
        loss = cross_entropy(logits, cached.labels).mean()
        hits = (logits.argmax(-1) == cached.labels).sum()
        course = Course(*(jnp.asarray(x)[None] for x in (loss, hits, images)))
    params, course = jax.tree.map(np.asarray, (params, course))
    if not all(np.isfinite(x).all() for x in (course.loss, *params.values())):
        raise UserError(
            f"the classifier {settings.name} is not finite: try a smaller classifier.lr, or "
            "dtype=float32."
        )
    return Trained(params, list(_epochs(course, rates, per_epoch)), chosen={})


def length(config: ConfigDict, images: int) -> tuple[int, int]:
    """Return the number of steps of a classifier's training, and of an epoch, on these images."""
    settings, classifier = config.classifier, CLASSIFIERS[config.classifier.name]
    if not classifier.learned:  # in closed form: one step, on all images
        return 1, 1
    shots = config.dataset.shots
    published = [n for least, n in classifier.epochs if shots < 0 or shots >= least]
    per_epoch = loader.steps_per_epoch(
        images, settings.batch_size or images, classifier.keeps_partial
    )
    epochs = settings.epochs or published[-1]
    return settings.steps_per_shot * shots or epochs * per_epoch, per_epoch


def learning_rates(
    settings: ConfigDict, support: Support, texts: ClassTexts, steps: int, per_epoch: int
) -> dict[str, np.ndarray]:
    """Return the learning rates (steps,) of the learned parameters, float64.

    By epoch e of E: 1e-5 in the first, then lr (1 + cos(π (e − 1) / E)) / 2. By steps: a
    cosine from lr to last_lr.
    """
    classifier, step = CLASSIFIERS[settings.name], np.arange(steps)
    epoch = step // per_epoch
    if classifier.rates:
        return classifier.rates(support, texts, epoch)
    if settings.schedule == "steps":
        falling = (1 + np.cos(np.pi * step / steps)) / 2
        rates = settings.last_lr + (settings.lr - settings.last_lr) * falling
    else:
        cosine = settings.lr * (1 + np.cos(np.pi * (epoch - 1) * per_epoch / steps)) / 2
        rates = np.where(epoch < 1, WARMUP_LR, cosine)
    return dict.fromkeys(classifier.learned, rates)


def draw_batches(
    settings: ConfigDict, images: int, views: int, steps: int, seed: int
) -> np.ndarray:
    """Return the rows of the features (V · N, E) that each step takes: (steps, B), -1 for padding.

    Each epoch permutes the images, in the next view. A pooled classifier draws each batch from all
    views of all images.
    """
    classifier, random = CLASSIFIERS[settings.name], np.random.default_rng(seed)
    if classifier.pooled:
        size = min(settings.batch_size or images, views * images)
        draws = [random.choice(views * images, size, replace=False) for _ in range(steps)]
        return np.array(draws, np.int32)
    size = min(settings.batch_size or images, images)
    per_epoch = loader.steps_per_epoch(images, size, classifier.keeps_partial)
    found = np.full((-(-steps // per_epoch), per_epoch * size), -1, np.int32)
    for epoch, row in enumerate(found):
        order = random.permutation(images)[: len(row)]
        row[: len(order)] = epoch % views * images + order
    return found.reshape(-1, size)[:steps]


@functools.partial(jax.jit, static_argnames=("name", "weight_decay"))
@jax.default_matmul_precision(EXACT)
def train_on_features(
    name: str,
    params: Params,
    features: Array,
    labels: Array,
    texts: ClassTexts,
    batches: np.ndarray,
    rates: dict[str, np.ndarray],
    weight_decay: float = 0.0,
) -> tuple[Params, Course]:
    """Train a classifier; return its parameters and the metrics of each step.

    Args:
      name: a key of CLASSIFIERS.
      params: the initial parameters.
      features: f̂ (M, E), with labels (M,).
      texts: those of the classes.
      batches: (steps, B) int, the rows of `features` that a step takes, -1 for padding.
      rates: the learning rate (steps,) of each learned parameter.
      weight_decay: that of the optimizer.
    """
    classifier = CLASSIFIERS[name]
    optimizer = OPTIMIZERS[classifier.optimizer](weight_decay)

    def objective(learned: Params, rows: Array) -> tuple[Array, Array]:
        own = {**params, **learned}
        weight = (rows >= 0).astype(jnp.float32)
        logits = classifier.logits(own, features[rows], texts)
        loss = (cross_entropy(logits, labels[rows]) * weight).sum() / weight.sum()
        if classifier.penalty is not None:
            loss += classifier.penalty(own, texts)
        return loss, ((logits.argmax(-1) == labels[rows]) * weight).sum()

    def step(state: PyTree, batch: PyTree) -> tuple[PyTree, Course]:
        (learned, opt_state), (rows, rate) = state, batch
        (loss, hits), gradient = jax.value_and_grad(objective, has_aux=True)(learned, rows)
        steps, opt_state = optimizer.update(gradient, opt_state, learned)
        learned = {key: x - rate[key] * steps[key] for key, x in learned.items()}
        return (learned, opt_state), Course(loss, hits, (rows >= 0).sum())

    learned = {key: params[key] for key in classifier.learned}
    numbers = jnp.int32(batches), jax.tree.map(jnp.float32, rates)
    (learned, _), course = jax.lax.scan(step, (learned, optimizer.init(learned)), numbers)
    return {**params, **learned}, course


def _epochs(
    course: Course, rates: dict[str, np.ndarray], per_epoch: int
) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield the last step of each epoch, and means over it."""
    rate = next(iter(rates.values()), np.zeros(1))
    for epoch, first in enumerate(range(0, len(course.loss), per_epoch), 1):
        loss, hits, images = (x[first : first + per_epoch] for x in course)
        values = {
            "epoch": epoch,
            "loss": float((loss * images).sum() / images.sum()),
            "accuracy": float(hits.sum() / images.sum()),
            "classifier_lr": float(rate[first]),
        }
        yield first + len(loss), values
