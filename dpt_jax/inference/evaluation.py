"""Evaluation: predictions on the whole test split, and the files that hold them."""

import collections
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.special

from dpt_jax.data import loader
from dpt_jax.errors import UserError
from dpt_jax.inference.experiment import Experiment, Frozen, training_meta
from dpt_jax.model import Outputs, Plain, PromptedCLIP, Texts
from dpt_jax.runtime import devices
from dpt_jax.runtime.console import Progress

CALIBRATION_BINS = 15
METHODS = ("zeroshot", "coop", "vpt", "vlp", "dpt")
RESULTS_FILE = "results.json"
PREDICTIONS_FILE = "predictions.npz"


class Predictions(NamedTuple):
    """The N test images that could be read, in the dataset's order.

    logits: (N, C) float32; label: (N,); row: (N,) index into the dataset's test examples.
    """

    logits: np.ndarray
    zero_shot_logits: np.ndarray
    label: np.ndarray
    row: np.ndarray


class Classifier(NamedTuple):
    """Evaluation, pmapped: every argument and result has a leading device axis.

    encode(frozen, prompts) -> the text features, once for all images;
    classify(frozen, prompts, texts, images (devices, b, H, W, 3)) -> what the
    method and plain CLIP make of the images, without the auxiliary logits.
    """

    encode: Callable[[Frozen, Any], Texts]
    classify: Callable[[Frozen, Any, Texts, Any], tuple[Outputs, Plain]]


def make_classifier(model: PromptedCLIP) -> Classifier:
    """The two programs that an evaluation runs."""

    def encode(frozen: Frozen, prompts: Any) -> Texts:
        params = {"clip": frozen.clip, "prompts": prompts}
        return model.encode_texts(params, frozen.layout, frozen.texts, devices.AXIS)

    def classify(frozen: Frozen, prompts: Any, texts: Texts, images: Any) -> tuple[Outputs, Plain]:
        params = {"clip": frozen.clip, "prompts": prompts}
        plain = model.plain(params, images, texts)
        return model(params, images, texts, plain)._replace(auxiliary_logits=None), plain

    return Classifier(
        jax.pmap(encode, axis_name=devices.AXIS), jax.pmap(classify, axis_name=devices.AXIS)
    )


def predict(experiment: Experiment, prompts: Any) -> Predictions:
    """Logits of the method and of zero-shot CLIP for the test split.

    The batch is shared by all devices: each host takes every so-many-th image,
    and all of them have the whole result.
    """
    config, dataset, model = experiment.config, experiment.dataset, experiment.model
    hosts, local = jax.process_count(), jax.local_device_count()
    rows = -(-min(config.eval.batch_size, len(dataset.test)) // hosts)
    steps = -(-len(dataset.test) // (rows * hosts))
    classifier = make_classifier(model)
    prompts = devices.replicate(prompts)
    texts = classifier.encode(experiment.frozen, prompts)
    batches = loader.test_batches(
        dataset.read,
        dataset.test,
        model.clip.image_size,
        rows,
        config.dataset.workers,
        skip_unreadable=config.dataset.on_error == "skip",
        host=jax.process_index(),
        hosts=hosts,
        preprocessing=model.clip.preprocessing,
    )
    # Every host runs the same number of steps, with the last images missing on some.
    nothing: loader.Batch = {
        "image": np.zeros((0, *[model.clip.image_size] * 2, 3), np.uint8),
        "label": np.zeros(0, np.int32),
        "index": np.zeros(0, np.int32),
        "weight": np.zeros(0, np.float32),
    }
    parts: list[tuple[np.ndarray, ...]] = []
    with Progress("evaluate", steps) as progress:
        for _ in range(steps):
            batch = next(batches, nothing)
            images = loader.shard(batch, rows, local)["image"]
            outputs, plain = classifier.classify(experiment.frozen, prompts, texts, images)
            own = [
                np.asarray(x).reshape(-1, x.shape[-1])[:rows]
                for x in (outputs.logits, plain.logits)
            ]
            own += [
                np.pad(batch[name], (0, rows - len(batch[name])))
                for name in ("label", "index", "weight")
            ]
            parts.append(tuple(own))
            progress.advance()
    *columns, weight = (
        devices.rows_of_all_hosts(np.concatenate(column)) for column in zip(*parts, strict=True)
    )
    readable = np.flatnonzero(weight)
    found = Predictions(*(column[readable] for column in columns))
    if not len(found.label):
        raise UserError(
            f"{config.dataset.name}: none of its {len(dataset.test)} test images could be read."
        )
    return found


def evaluate(
    experiment: Experiment,
    prompts: Any,
    workdir: pathlib.Path,
    meta: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Predicts, writes results.json (and predictions.npz with eval.save_logits); the results.

    meta: what the checkpoint says of the prompts' training; None where that was
    this experiment.
    """
    config, dataset, model = experiment.config, experiment.dataset, experiment.model
    found = predict(experiment, prompts)
    names = distinct(dataset.classnames)
    scores = class_scores(found.logits.argmax(-1), found.label, names)
    meta = training_meta(experiment) if meta is None else meta
    results = {
        "method": model.prompts.method,
        "dataset": config.dataset.name,
        "shots": config.dataset.shots,
        "seed": config.seed,
        "split": "test",
        "classes": config.dataset.classes,
        "trained_on": {key: meta[key] for key in ("dataset", "classes")}
        if meta.get("dataset")
        else None,
        "n": len(found.label),
        "unreadable": len(dataset.test) - len(found.label),
        "accuracy": float((found.logits.argmax(-1) == found.label).mean()),
        "macro_f1": float(np.mean([s["f1"] for s in scores.values() if s["n"]])),
        "zero_shot_accuracy": float((found.zero_shot_logits.argmax(-1) == found.label).mean()),
        "calibration": calibration(found.logits, found.label),
        "zero_shot_calibration": calibration(found.zero_shot_logits, found.label),
        "per_class": scores,
    }
    if not devices.is_first():
        return results
    workdir.mkdir(parents=True, exist_ok=True)
    if config.eval.save_logits:
        np.savez(
            workdir / PREDICTIONS_FILE,
            logits=found.logits.astype(np.float32),
            label=found.label,
            path=np.array([dataset.test[i].path for i in found.row]),
            classnames=np.array(dataset.classnames),
        )
    # Last and in one piece: where results.json is, the evaluation is whole, and a sweep does not repeat it.
    written = workdir / f"{RESULTS_FILE}.tmp"
    written.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    written.replace(workdir / RESULTS_FILE)
    return results


def read_result(file: pathlib.Path) -> dict[str, Any]:
    """One results.json.  Raises UserError where it is missing, damaged or of an older version."""
    needed = {
        "method",
        "dataset",
        "classes",
        "shots",
        "seed",
        "n",
        "accuracy",
        "macro_f1",
        "per_class",
        "trained_on",
    }
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        missing = sorted(needed.difference(results))
        if not missing and not (results["method"] in METHODS and 0 <= results["accuracy"] <= 1):
            raise ValueError("its method or accuracy is none")
    except (FileNotFoundError, NotADirectoryError) as reason:
        raise UserError(
            f"{file} is not there: give the workdir of a finished run, or evaluate this one."
        ) from reason
    except (ValueError, TypeError) as reason:
        raise UserError(
            f"{file} is not the results of a run ({reason}): delete it and evaluate again."
        ) from reason
    if missing:
        raise UserError(
            f"{file} does not say {missing[0]!r}: evaluate that run again, with --mode=eval."
        )
    return results


def class_scores(
    predicted: np.ndarray, label: np.ndarray, names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """For each class its images n, the part of them that is recognised, F1 (0 where it is undefined), and
    what its images were taken for, {class: images}, most first."""
    scores = {}
    for c, name in enumerate(names):
        hits, n, named = (
            ((predicted == c) & (label == c)).sum(),
            (label == c).sum(),
            (predicted == c).sum(),
        )
        taken_for = collections.Counter(predicted[label == c].tolist())
        scores[name] = {
            "n": int(n),
            "accuracy": float(hits / n) if n else None,
            "f1": float(2 * hits / (n + named)) if n + named else 0.0,
            "predicted": {names[other]: count for other, count in taken_for.most_common()},
        }
    return scores


def calibration(logits: np.ndarray, label: np.ndarray) -> dict[str, Any]:
    """How far the probability of the first answer is from how often it is right (Guo et al. 2017, equation 5).

    {"ece": expected calibration error, from 0 to 1, "bins": for each fifteenth of the probabilities that has images
    {"images", "confidence" (their mean probability), "accuracy"}}.
    """
    probabilities = scipy.special.softmax(logits.astype(np.float64), axis=-1)
    confidence, right = probabilities.max(-1), probabilities.argmax(-1) == label
    numbers = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    bins = [
        {
            "images": int(own.sum()),
            "confidence": float(confidence[own].mean()),
            "accuracy": float(right[own].mean()),
        }
        for own in (numbers == number for number in np.unique(numbers))
    ]
    gaps = [one["images"] * abs(one["accuracy"] - one["confidence"]) for one in bins]
    return {"ece": sum(gaps) / len(label), "bins": bins}


def distinct(classnames: Sequence[str]) -> list[str]:
    """The names, those that several classes have (ImageNet's "missile") with the class's number."""
    times = collections.Counter(classnames)
    return [
        name if times[name] == 1 else f"{name} (class {i})" for i, name in enumerate(classnames)
    ]


def summary(results: dict[str, Any]) -> str:
    """One or two lines for the person who ran it."""
    accuracy, zero_shot = 100 * results["accuracy"], 100 * results["zero_shot_accuracy"]
    method, n, macro_f1 = results["method"], results["n"], results["macro_f1"]
    line = f"{method}: {accuracy:.1f} % of {n} test images right, macro F1 {macro_f1:.3f}"
    if results["unreadable"]:
        line += f" ({results['unreadable']} more could not be read and were left out)"
    if method == "zeroshot":
        return line
    return f"{line}\nzero-shot: {zero_shot:.1f} %, so {method} gained {accuracy - zero_shot:+.1f} points"
