"""Classifiers on image and text features, by name (section "Classifiers" of docs/method.md).

Symbols: N training images, C classes, E joint embedding; f and f̂ image features, un-normalised and
of unit length; s the temperature. The parameters of a classifier are a dict of arrays in the tree
of learned parameters; the functions below are pure.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from dpt_jax.clip.blocks import Array, Params
from dpt_jax.clip.model import normalize
from dpt_jax.prompts.linear import torch_uniform

LEAST_REGULARIZATION = 1e-3  # of SS-Text
AFFINITY_SCALE = 250.0  # of LP++'s initial α
ALPHA_EVERY = 10  # epochs between LP++'s steps of α
REDUCTION = 4  # of the width, in CLIP-Adapter


class ClassTexts(NamedTuple):
    """Text features (C, E) of the classes."""

    unit: Array  # T, the mean over the templates of unit features, normalised again
    raw: Array  # u, the mean over the templates, not normalised


class Support(NamedTuple):
    """The training images."""

    views: Array  # (V, N, E), features f of each cached view, not normalised
    labels: Array  # (N,) int


# (parameters, f̂ (B, E), texts, s) -> (B, C)
Logits = Callable[[Params, Array, ClassTexts, Array], Array]
# (support, texts, s, key of jax.random, config.classifier) -> parameters
Start = Callable[[Support, ClassTexts, Array, Array, ConfigDict], Params]


@dataclasses.dataclass(frozen=True)
class Classifier:
    """One classifier.

    Attributes:
      start: Returns the initial parameters; for a closed form, the final ones.
      logits: Classifies images.
      learned: Names of the parameters that are trained. The others stay as they start.
      per_class: Names of the parameters whose first axis is the classes.
      optimizer: Maps weight decay to an Optax transformation without a learning rate.
      penalty: Maps parameters and texts to a scalar added to the cross-entropy.
      rates: Maps support, texts and each step's epoch (steps,) to the learning rates (steps,) of
        each learned parameter; None for the schedule of config.classifier.
      pooled: Whether a batch is drawn from all views of all images, instead of being the next
        images of one view.
      keeps_partial: Whether an epoch's last, smaller batch is used.
      epochs: Published pairs (minimum shots, epochs).
      grid: Candidates for keys of config.classifier under select=support. Those of lr are factors.
    """

    start: Start
    logits: Logits
    learned: tuple[str, ...] = ()
    per_class: tuple[str, ...] = ()
    optimizer: Callable[[float], optax.GradientTransformation] | None = None
    penalty: Callable[[Params, ClassTexts], Array] | None = None
    rates: Callable[[Support, ClassTexts, np.ndarray], dict[str, np.ndarray]] | None = None
    pooled: bool = False
    keeps_partial: bool = False
    epochs: tuple[tuple[int, int], ...] = ()
    grid: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)


def for_classes(classifier: Classifier, params: Params, rows: np.ndarray) -> Params:
    """Return the parameters for other classes. New classes fall back to their texts.

    Args:
      classifier: The classifier of the parameters.
      params: As trained.
      rows: (C',) int, the trained class of each class, -1 for a new one.
    """
    known = rows >= 0

    def take(x: np.ndarray) -> np.ndarray:
        return np.where(known.reshape(-1, *[1] * (x.ndim - 1)), x[rows], 0).astype(x.dtype)

    taken = {name: take(x) if name in classifier.per_class else x for name, x in params.items()}
    return {**taken, "known": known.astype(np.float32)}


def shapes(
    classifier: Classifier, images: int, classes: int, width: int, settings: ConfigDict
) -> Params:
    """Return the shapes of the parameters for these numbers of images, classes and features."""

    def start() -> Params:
        texts = jnp.zeros((classes, width), jnp.float32)
        views, labels = jnp.zeros((1, images, width), jnp.float32), jnp.zeros(images, jnp.int32)
        key, s = jax.random.key(0), jnp.float32(1)
        own = Support(views, labels), ClassTexts(texts, texts)
        return classifier.start(*own, s, key, settings)

    return jax.eval_shape(start)


def _or_texts(params: Params, name: str, texts: Array | float) -> Array:
    """Return the rows (C, …) of a parameter, and the texts' rows for new classes."""
    if "known" not in params:
        return params[name]
    known = params["known"].reshape(-1, *[1] * (params[name].ndim - 1))
    return jnp.where(known > 0, params[name], texts)


def _sum_by_class(rows: Array, labels: Array, classes: int) -> Array:
    """Return the sums (C, …) of the rows (N, …) of each class."""
    return jnp.zeros((classes, *rows.shape[1:]), rows.dtype).at[labels].add(rows)


# ---- Prototypes: a vector w_c for each class, logits s f̂ · unit(w_c).


def prototype_logits(params: Params, features: Array, texts: ClassTexts, s: Array) -> Array:
    """Return s f̂ · unit(w)."""
    return s * features @ normalize(_or_texts(params, "weight", texts.raw)).T


def start_from_texts(
    support: Support, texts: ClassTexts, s: Array, key: Array, settings: ConfigDict
) -> Params:
    """Return w = u: a linear probe that starts from zero-shot CLIP (ZS-LP)."""
    return {"weight": texts.raw}


def start_from_unit_texts(
    support: Support, texts: ClassTexts, s: Array, key: Array, settings: ConfigDict
) -> Params:
    """Return w = T, the unit texts: the second stage of 2SFS."""
    return {"weight": texts.unit}


def start_clap(
    support: Support, texts: ClassTexts, s: Array, key: Array, settings: ConfigDict
) -> Params:
    """Return w = u, and λ: how far zero-shot CLIP trusts each class (CLAP)."""
    return {"weight": texts.raw, "penalty": text_confidence(support, texts, s)}


def text_confidence(support: Support, texts: ClassTexts, s: Array) -> Array:
    """Return λ (C,): the mean zero-shot probability of c on the views of c's own images.

    A class without images gets the mean of the others.
    """
    images, classes = len(support.labels), len(texts.raw)
    zero_shot = s * normalize(support.views) @ normalize(texts.raw).T
    own = jax.nn.softmax(zero_shot)[:, jnp.arange(images), support.labels].mean(0)
    counts = _sum_by_class(jnp.ones(images), support.labels, classes)
    confidence = _sum_by_class(own, support.labels, classes) / jnp.maximum(counts, 1)
    others = confidence.sum() / jnp.maximum((counts > 0).sum(), 1)
    return jnp.where(counts > 0, confidence, others)


def clap_penalty(params: Params, texts: ClassTexts) -> Array:
    """Return mean_c λ_c ‖w_c − u_c‖². CLAP's paper has a sum, its code a mean."""
    distance = ((params["weight"] - texts.raw) ** 2).sum(-1)
    return jnp.asarray((params["penalty"] * distance).mean())


def closed_form(confidence: bool = False, plus: bool = False) -> Start:
    """Return the function that computes SS-Text's prototypes.

    w_c = u_c + S_c / (N λ), S_c = s Σ f_i over the images of c; λ is max(1/N, 0.001).

    Args:
      confidence: Whether λ is CLAP's, at least 0.001.
      plus: Whether w_c = v_c − unit(2 v_c − mean v), v_c = u_c + n_c S_c / N (SS-Text+).
    """

    def start(
        support: Support, texts: ClassTexts, s: Array, key: Array, settings: ConfigDict
    ) -> Params:
        images, classes = len(support.labels), len(texts.raw)
        sums = s * _sum_by_class(support.views.mean(0), support.labels, classes)
        if plus:
            counts = _sum_by_class(jnp.ones((images, 1)), support.labels, classes)
            v = texts.raw + counts * sums / images
            return {"weight": v - normalize(2 * v - v.mean(0))}
        weight = text_confidence(support, texts, s)[:, None] if confidence else 1 / images
        return {"weight": texts.raw + sums / (images * jnp.maximum(weight, LEAST_REGULARIZATION))}

    return start


# ---- TaskRes: logits s f̂ · unit(u + a x).


def start_residual(
    support: Support, texts: ClassTexts, s: Array, key: Array, settings: ConfigDict
) -> Params:
    """Return x = 0, and a."""
    return {"residual": jnp.zeros_like(texts.raw), "scale": jnp.float32(settings.residual_scale)}


def residual_logits(params: Params, features: Array, texts: ClassTexts, s: Array) -> Array:
    """Return s f̂ · unit(u + a x)."""
    return s * features @ normalize(texts.raw + params["scale"] * params["residual"]).T


# ---- CLIP-Adapter: two layers on the image feature.


def start_adapter(
    support: Support, texts: ClassTexts, s: Array, key: Array, settings: ConfigDict
) -> Params:
    """Return W₁ and W₂, U(±1/√fan_in), and r."""
    width = texts.raw.shape[-1]
    narrow = width // REDUCTION
    down, up = jax.random.split(key)
    return {
        "down": torch_uniform(width)(down, (narrow, width)),
        "up": torch_uniform(narrow)(up, (width, narrow)),
        "ratio": jnp.float32(settings.ratio),
    }


def adapter_logits(params: Params, features: Array, texts: ClassTexts, s: Array) -> Array:
    """Return s unit(r A(f̂) + (1 − r) f̂) · T, A(f) = relu(W₂ relu(W₁ f)).

    A(λ f) = λ A(f) for λ > 0, so the features may be of unit length.
    """
    adapted = jax.nn.relu(jax.nn.relu(features @ params["down"].T) @ params["up"].T)
    ratio = params["ratio"]
    return s * normalize(ratio * adapted + (1 - ratio) * features) @ texts.unit.T


# ---- Tip-Adapter: a cache of the training images added to zero-shot CLIP.


def start_cache(
    support: Support, texts: ClassTexts, s: Array, key: Array, settings: ConfigDict
) -> Params:
    """Return the keys k (N, E), their one-hot labels (C, N), α and β."""
    return {
        "keys": normalize(support.views.mean(0)),
        "values": jax.nn.one_hot(support.labels, len(texts.unit), axis=0),
        "alpha": jnp.float32(settings.alpha),
        "beta": jnp.float32(settings.beta),
    }


def cache_logits(params: Params, features: Array, texts: ClassTexts, s: Array) -> Array:
    """Return s f̂ Tᵀ + α exp(−β (1 − f̂ kᵀ)) Y; the published s is 100, which OpenAI's CLIPs have."""
    affinity = jnp.exp(-params["beta"] * (1 - features @ params["keys"].T))
    return s * features @ texts.unit.T + params["alpha"] * affinity @ params["values"].T


# ---- LP++: logits f̂ · (w_c + α_c T_c) + b_c, without temperature.


def start_blend(
    support: Support, texts: ClassTexts, s: Array, key: Array, settings: ConfigDict
) -> Params:
    """Return w (C, E), the sum of a class's features; b (C,), U(±1/√E); α (C,), all the same."""
    features, labels = normalize(support.views.mean(0)), support.labels
    classes, width = texts.unit.shape
    counts = _sum_by_class(jnp.ones(len(labels)), labels, classes)
    affinity = _sum_by_class((features * texts.unit[labels]).sum(-1), labels, classes)
    alpha = AFFINITY_SCALE * (affinity / jnp.maximum(counts, 1)).mean()
    bias = torch_uniform(width)(key, (classes,))
    weight = _sum_by_class(features, labels, classes)
    return {"weight": weight, "bias": bias, "alpha": jnp.full((classes,), alpha)}


def blend_logits(params: Params, features: Array, texts: ClassTexts, s: Array) -> Array:
    """Return f̂ · (w_c + α_c T_c) + b_c. A new class has w = 0, b = 0 and α = s."""
    alpha = _or_texts(params, "alpha", s)
    return features @ (params["weight"] + alpha[:, None] * texts.unit).T + params["bias"]


def blend_rates(support: Support, texts: ClassTexts, epochs: np.ndarray) -> dict[str, np.ndarray]:
    """Return LP++'s rates: 4N / λmax(F̂ᵀF̂) for w and b, N / (4 max_c Σ_i (f̂_i · T_c)²) for α.

    α takes a step after every tenth epoch.
    """
    features = np.asarray(normalize(support.views.mean(0)))
    images = len(features)
    # F̂ᵀF̂ and F̂F̂ᵀ have the same largest eigenvalue, the square of F̂'s largest singular value.
    rate = 4 * images / np.linalg.norm(features, 2) ** 2
    affinity = np.asarray(features @ np.asarray(texts.unit).T)
    rate_alpha = images / (4 * (affinity**2).sum(0).max())
    steps = np.full(len(epochs), rate)
    return {
        "weight": steps,
        "bias": steps,
        "alpha": np.where((epochs + 1) % ALPHA_EVERY == 0, rate_alpha, 0.0),
    }


# ---- Optimizers. Their steps are multiplied by minus the learning rate.


def momentum_sgd(weight_decay: float) -> optax.GradientTransformation:
    """Return SGD with momentum 0.9. Weight decay is added to the gradient."""
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.trace(0.9))


def adam(eps: float = 1e-8) -> optax.GradientTransformation:
    """Return Adam, with β of 0.9 and 0.999.

    Unlike Optax's, it computes 1 − β^t by expm1, which avoids a float32 rounding error of 3e-5 at
    the first steps.
    """

    def update(
        gradient: Params, state: optax.ScaleByAdamState, _: Params | None = None
    ) -> tuple[Params, optax.ScaleByAdamState]:
        count = state.count + 1
        mu = optax.tree.update_moment(gradient, state.mu, 0.9, 1)
        nu = optax.tree.update_moment(gradient, state.nu, 0.999, 2)
        first, second = (-jnp.expm1(count * math.log(beta)) for beta in (0.9, 0.999))
        steps = jax.tree.map(lambda m, v: m / first / (jnp.sqrt(v / second) + eps), mu, nu)
        return steps, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(optax.scale_by_adam().init, update)


def adam_with_l2(weight_decay: float) -> optax.GradientTransformation:
    """Return Adam. Weight decay is added to the gradient."""
    return optax.chain(optax.add_decayed_weights(weight_decay), adam())


def adamw(weight_decay: float, eps: float = 1e-8) -> optax.GradientTransformation:
    """Return AdamW, with decoupled weight decay."""
    return optax.chain(adam(eps), optax.add_decayed_weights(weight_decay))


def tip_adamw(weight_decay: float) -> optax.GradientTransformation:
    """Return Tip-Adapter-F's AdamW."""
    return adamw(weight_decay, eps=1e-4)


def block_sgd(weight_decay: float) -> optax.GradientTransformation:
    """Return LP++'s SGD. The gradient of α is never reset, so each step subtracts the sum."""
    labels = {"weight": "momentum", "bias": "momentum", "alpha": "sum"}
    return optax.partition(
        {"momentum": momentum_sgd(weight_decay), "sum": optax.trace(1.0)}, labels
    )


_RATES: Mapping[str, tuple[float, ...]] = {"lr": (0.1, 1.0, 10.0)}
_CACHE_GRID = {"alpha": (0.5, 1.17, 3.0, 10.0), "beta": (1.0, 3.0, 10.0, 30.0)}
_PROTOTYPES = Classifier(
    start_from_texts,
    prototype_logits,
    ("weight",),
    ("weight",),
    momentum_sgd,
    pooled=True,
    epochs=((1, 300),),
    grid=_RATES,
)
_CACHE = Classifier(
    start_cache, cache_logits, per_class=("values",), keeps_partial=True, grid=_CACHE_GRID
)
_CLOSED_FORM = Classifier(closed_form(), prototype_logits, per_class=("weight",))

CLASSIFIERS: dict[str, Classifier] = {
    "zslp": _PROTOTYPES,
    "clap": dataclasses.replace(
        _PROTOTYPES,
        start=start_clap,
        penalty=clap_penalty,
        per_class=("weight", "penalty"),
    ),
    "linear": Classifier(
        start_from_unit_texts,
        prototype_logits,
        ("weight",),
        ("weight",),
        adamw,
        keeps_partial=True,
        epochs=((1, 100),),
    ),
    "taskres": Classifier(
        start_residual,
        residual_logits,
        ("residual",),
        ("residual",),
        adam_with_l2,
        epochs=((1, 100), (8, 200)),
        grid={"residual_scale": (0.1, 0.5, 1.0, 2.0)},
    ),
    "clip_adapter": Classifier(
        start_adapter,
        adapter_logits,
        ("down", "up"),
        optimizer=momentum_sgd,
        epochs=((1, 50), (2, 100), (8, 200)),
        grid={"ratio": (0.2, 0.4, 0.6, 0.8)},
    ),
    "tip_adapter": _CACHE,
    "tip_adapter_f": dataclasses.replace(
        _CACHE, learned=("keys",), optimizer=tip_adamw, epochs=((1, 20),)
    ),
    "lpplus": Classifier(
        start_blend,
        blend_logits,
        ("weight", "bias", "alpha"),
        ("weight", "bias", "alpha"),
        block_sgd,
        rates=blend_rates,
        epochs=((1, 300),),
    ),
    "sstext": _CLOSED_FORM,
    "sstext_plus": dataclasses.replace(_CLOSED_FORM, start=closed_form(plus=True)),
    "sstext_confidence": dataclasses.replace(_CLOSED_FORM, start=closed_form(confidence=True)),
}
