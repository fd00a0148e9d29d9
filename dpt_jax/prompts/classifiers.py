"""Classifiers on image and text features, by name (section "Classifiers" of docs/method.md).

Symbols: N training images, C classes, E joint embedding; f and f̂ image features, un-normalised and
of unit length; s the temperature. The parameters of a classifier are a dict of arrays in the tree
of learned parameters; the functions below are pure.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dpt_jax.clip.blocks import Array, Params
from dpt_jax.clip.model import normalize
from dpt_jax.prompts import torch_uniform

LEAST_REGULARIZATION = 1e-3  # of SS-Text
AFFINITY_SCALE = 250.0  # of LP++'s initial α
ALPHA_EVERY = 10  # epochs between LP++'s steps of α
REDUCTION = 4  # of the width, in CLIP-Adapter


class ClassTexts(NamedTuple):
    """Text features of the classes, and the temperature."""

    unit: Array  # T (C, E), the mean over the templates of unit features, normalised again
    raw: Array  # u (C, E), the mean over the templates, not normalised
    s: Array  # ()


class Support(NamedTuple):
    """The training images."""

    views: Array  # (V, N, E), features f of each cached view, not normalised
    labels: Array  # (N,) int


@dataclasses.dataclass(frozen=True)
class Classifier:
    """One classifier: what it starts from, its logits, and how it is trained."""

    # (support, texts, key of jax.random, config.classifier) -> the initial parameters; of a closed
    # form, the final ones.
    start: Callable[[Support, ClassTexts, Array, ConfigDict], Params]
    logits: Callable[[Params, Array, ClassTexts], Array]  # (parameters, f̂ (B, E), texts) -> (B, C)
    learned: tuple[str, ...] = ()  # names of the parameters that are trained
    per_class: tuple[str, ...] = ()  # names of the parameters whose first axis is the classes
    optimizer: str = "sgd"  # of training.optimizer.OPTIMIZERS
    penalty: Callable[[Params, ClassTexts], Array] | None = None  # added to the cross-entropy
    # (support, texts, epoch of each step) -> the rates (steps,) of each learned parameter; None for
    # the schedule of config.classifier.
    rates: Callable[[Support, ClassTexts, np.ndarray], dict[str, np.ndarray]] | None = None
    pooled: bool = False  # whether a batch is drawn from all views, or the next images of one
    keeps_partial: bool = False  # whether an epoch's last, smaller batch is used
    epochs: tuple[tuple[int, int], ...] = ()  # published pairs (minimum shots, epochs)
    # Candidates for keys of config.classifier under select=support; those of lr are factors.
    grid: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)


def for_classes(classifier: Classifier, params: Params, rows: np.ndarray) -> Params:
    """Return the parameters for other classes. New classes fall back to their texts.

    rows: (C',) int, the trained class of each class, -1 for a new one.
    """
    known = rows >= 0

    def take(x: np.ndarray) -> np.ndarray:
        return np.where(known.reshape(-1, *[1] * (x.ndim - 1)), x[rows], 0).astype(x.dtype)

    taken = {name: take(x) if name in classifier.per_class else x for name, x in params.items()}
    return {**taken, "known": known.astype(np.float32)}


def _or_texts(params: Params, name: str, texts: Array) -> Array:
    """Return the rows (C, …) of a parameter, and the texts' rows for new classes."""
    if "known" not in params:
        return params[name]
    known = params["known"].reshape(-1, *[1] * (params[name].ndim - 1))
    return jnp.where(known > 0, params[name], texts)


def _sum_by_class(rows: Array, labels: Array, classes: int) -> Array:
    """Return the sums (C, …) of the rows (N, …) of each class."""
    return jnp.zeros((classes, *rows.shape[1:]), rows.dtype).at[labels].add(rows)


# ---- Prototypes: a vector w_c for each class.


def prototype_logits(params: Params, features: Array, texts: ClassTexts) -> Array:
    """Return s f̂ · unit(w)."""
    return texts.s * features @ normalize(_or_texts(params, "weight", texts.raw)).T


def text_confidence(support: Support, texts: ClassTexts) -> Array:
    """Return CLAP's λ (C,): the mean zero-shot probability of c on the views of c's own images.

    A class without images gets the mean of the others.
    """
    images, classes = len(support.labels), len(texts.raw)
    zero_shot = texts.s * normalize(support.views) @ normalize(texts.raw).T
    own = jax.nn.softmax(zero_shot)[:, jnp.arange(images), support.labels].mean(0)
    counts = _sum_by_class(jnp.ones(images), support.labels, classes)
    confidence = _sum_by_class(own, support.labels, classes) / jnp.maximum(counts, 1)
    others = confidence.sum() / jnp.maximum((counts > 0).sum(), 1)
    return jnp.where(counts > 0, confidence, others)


def clap_penalty(params: Params, texts: ClassTexts) -> Array:
    """Return mean_c λ_c ‖w_c − u_c‖². CLAP's paper has a sum, its code a mean."""
    distance = ((params["weight"] - texts.raw) ** 2).sum(-1)
    return jnp.asarray((params["penalty"] * distance).mean())


def ss_text(kind: str, support: Support, texts: ClassTexts, *_: object) -> Params:
    """Return SS-Text's prototypes in closed form: w_c = u_c + S_c / (N λ).

    S_c = s Σ f_i over the images of c; λ is max(1/N, 0.001).

    kind: "plus" for w_c = v_c − unit(2 v_c − mean v), v_c = u_c + n_c S_c / N; "confidence" for
    CLAP's λ_c, at least 0.001; or "".
    """
    images, classes = len(support.labels), len(texts.raw)
    sums = texts.s * _sum_by_class(support.views.mean(0), support.labels, classes)
    if kind == "plus":
        counts = _sum_by_class(jnp.ones((images, 1)), support.labels, classes)
        v = texts.raw + counts * sums / images
        return {"weight": v - normalize(2 * v - v.mean(0))}
    weight = text_confidence(support, texts)[:, None] if kind == "confidence" else 1 / images
    return {"weight": texts.raw + sums / (images * jnp.maximum(weight, LEAST_REGULARIZATION))}


# ---- TaskRes: a residual x of the texts.


def residual_logits(params: Params, features: Array, texts: ClassTexts) -> Array:
    """Return s f̂ · unit(u + a x)."""
    return texts.s * features @ normalize(texts.raw + params["scale"] * params["residual"]).T


# ---- CLIP-Adapter: two layers on the image feature.


def start_adapter(_: Support, texts: ClassTexts, key: Array, settings: ConfigDict) -> Params:
    """Return W₁ and W₂, U(±1/√fan_in), and r."""
    width = texts.raw.shape[-1]
    narrow = width // REDUCTION
    down, up = jax.random.split(key)
    return {
        "down": torch_uniform(width)(down, (narrow, width)),
        "up": torch_uniform(narrow)(up, (width, narrow)),
        "ratio": jnp.float32(settings.ratio),
    }


def adapter_logits(params: Params, features: Array, texts: ClassTexts) -> Array:
    """Return s unit(r A(f̂) + (1 − r) f̂) · T, A(f) = relu(W₂ relu(W₁ f)).

    A(λ f) = λ A(f) for λ > 0, so the features may be of unit length.
    """
    adapted = jax.nn.relu(jax.nn.relu(features @ params["down"].T) @ params["up"].T)
    ratio = params["ratio"]
    return texts.s * normalize(ratio * adapted + (1 - ratio) * features) @ texts.unit.T


# ---- Tip-Adapter: a cache of the training images added to zero-shot CLIP.


def start_cache(support: Support, texts: ClassTexts, _: Array, settings: ConfigDict) -> Params:
    """Return the keys k (N, E), their one-hot labels (C, N), α and β."""
    return {
        "keys": normalize(support.views.mean(0)),
        "values": jax.nn.one_hot(support.labels, len(texts.unit), axis=0),
        "alpha": jnp.float32(settings.alpha),
        "beta": jnp.float32(settings.beta),
    }


def cache_logits(params: Params, features: Array, texts: ClassTexts) -> Array:
    """Return s f̂ Tᵀ + α exp(−β (1 − f̂ kᵀ)) Y; the published s is 100, which OpenAI's CLIPs have."""
    affinity = jnp.exp(-params["beta"] * (1 - features @ params["keys"].T))
    return texts.s * features @ texts.unit.T + params["alpha"] * affinity @ params["values"].T


# ---- LP++: a blend of prototypes and texts, without temperature.


def start_blend(support: Support, texts: ClassTexts, key: Array, _: ConfigDict) -> Params:
    """Return w (C, E), the sum of a class's features; b (C,), U(±1/√E); α (C,), all the same."""
    features, labels = normalize(support.views.mean(0)), support.labels
    classes, width = texts.unit.shape
    counts = _sum_by_class(jnp.ones(len(labels)), labels, classes)
    affinity = _sum_by_class((features * texts.unit[labels]).sum(-1), labels, classes)
    alpha = AFFINITY_SCALE * (affinity / jnp.maximum(counts, 1)).mean()
    bias = torch_uniform(width)(key, (classes,))
    weight = _sum_by_class(features, labels, classes)
    return {"weight": weight, "bias": bias, "alpha": jnp.full((classes,), alpha)}


def blend_logits(params: Params, features: Array, texts: ClassTexts) -> Array:
    """Return f̂ · (w_c + α_c T_c) + b_c. A new class has w = 0, b = 0 and α = s."""
    alpha = _or_texts(params, "alpha", texts.s)
    return features @ (params["weight"] + alpha[:, None] * texts.unit).T + params["bias"]


def blend_rates(support: Support, texts: ClassTexts, epochs: np.ndarray) -> dict[str, np.ndarray]:
    """Return LP++'s rates: 4N / λmax(F̂ᵀF̂) for w and b, N / (4 max_c Σ_i (f̂_i · T_c)²) for α.

    α takes a step after every tenth epoch.
    """
    features = np.asarray(normalize(support.views.mean(0)))
    images = len(features)
    # F̂ᵀF̂ and F̂F̂ᵀ have the same largest eigenvalue, the square of F̂'s largest singular value.
    rate = np.full(len(epochs), 4 * images / np.linalg.norm(features, 2) ** 2)
    affinity = np.asarray(features @ np.asarray(texts.unit).T)
    rate_alpha = images / (4 * (affinity**2).sum(0).max())
    of_alpha = np.where((epochs + 1) % ALPHA_EVERY == 0, rate_alpha, 0.0)
    return {"weight": rate, "bias": rate, "alpha": of_alpha}


_PROTOTYPES = Classifier(
    start=lambda support, texts, *_: {"weight": texts.raw},
    logits=prototype_logits,
    learned=("weight",),
    per_class=("weight",),
    pooled=True,
    epochs=((1, 300),),
    grid={"lr": (0.1, 1.0, 10.0)},
)
_CACHE = Classifier(
    start=start_cache,
    logits=cache_logits,
    per_class=("values",),
    keeps_partial=True,
    grid={"alpha": (0.5, 1.17, 3.0, 10.0), "beta": (1.0, 3.0, 10.0, 30.0)},
)
_SS_TEXT = Classifier(
    start=functools.partial(ss_text, ""), logits=prototype_logits, per_class=("weight",)
)

CLASSIFIERS: dict[str, Classifier] = {
    "zslp": _PROTOTYPES,
    "clap": dataclasses.replace(
        _PROTOTYPES,
        start=lambda support, texts, key, settings: {
            "weight": texts.raw,
            "penalty": text_confidence(support, texts),
        },
        penalty=clap_penalty,
        per_class=("weight", "penalty"),
    ),
    "linear": Classifier(
        start=lambda support, texts, *_: {"weight": texts.unit},
        logits=prototype_logits,
        learned=("weight",),
        per_class=("weight",),
        optimizer="adamw",
        keeps_partial=True,
        epochs=((1, 100),),
    ),
    "taskres": Classifier(
        start=lambda support, texts, key, settings: {
            "residual": jnp.zeros_like(texts.raw),
            "scale": jnp.float32(settings.residual_scale),
        },
        logits=residual_logits,
        learned=("residual",),
        per_class=("residual",),
        optimizer="adam_l2",
        epochs=((1, 100), (8, 200)),
        grid={"residual_scale": (0.1, 0.5, 1.0, 2.0)},
    ),
    "clip_adapter": Classifier(
        start=start_adapter,
        logits=adapter_logits,
        learned=("down", "up"),
        epochs=((1, 50), (2, 100), (8, 200)),
        grid={"ratio": (0.2, 0.4, 0.6, 0.8)},
    ),
    "tip_adapter": _CACHE,
    "tip_adapter_f": dataclasses.replace(
        _CACHE, learned=("keys",), optimizer="tip_adamw", epochs=((1, 20),)
    ),
    "lpplus": Classifier(
        start=start_blend,
        logits=blend_logits,
        learned=("weight", "bias", "alpha"),
        per_class=("weight", "bias", "alpha"),
        optimizer="lpplus",
        rates=blend_rates,
        epochs=((1, 300),),
    ),
    "sstext": _SS_TEXT,
    "sstext_plus": dataclasses.replace(_SS_TEXT, start=functools.partial(ss_text, "plus")),
    "sstext_confidence": dataclasses.replace(
        _SS_TEXT, start=functools.partial(ss_text, "confidence")
    ),
}
