"""Evaluation: predictions on the whole test split, and the files that hold them."""

import json
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import jax_utils

from dpt_jax.data import loader
from dpt_jax.errors import UserError
from dpt_jax.experiment import Experiment, Frozen
from dpt_jax.metrics import Progress
from dpt_jax.model import Texts

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


def predict(experiment: Experiment, prompts: Any) -> Predictions:
    """Logits of the method and of zero-shot CLIP for the test split.

    Text features are computed once; the batch is shared by the local devices.
    """
    config, dataset, model = experiment.config, experiment.dataset, experiment.model
    devices = jax.local_device_count()
    rows = min(config.eval.batch_size, len(dataset.test))

    @jax.pmap
    def encode(frozen: Frozen, prompts: Any) -> Texts:
        return model.encode_texts({"clip": frozen.clip, "prompts": prompts}, frozen.layout, frozen.texts)

    @jax.pmap
    def classify(frozen: Frozen, prompts: Any, texts: Texts, images: Any) -> tuple[jax.Array, jax.Array]:
        outputs = model({"clip": frozen.clip, "prompts": prompts}, images, texts)
        return outputs.logits, outputs.zero_shot_logits

    prompts = jax_utils.replicate(prompts)
    texts = encode(experiment.frozen, prompts)
    batches = loader.test_batches(
        dataset.read,
        dataset.test,
        model.clip.image_size,
        config.eval.batch_size,
        config.dataset.workers,
        skip_unreadable=config.dataset.on_error == "skip",
    )
    parts: list[tuple[np.ndarray, ...]] = []
    with Progress("evaluate", -(-len(dataset.test) // config.eval.batch_size)) as progress:
        for batch in batches:
            images = loader.shard(batch, rows, devices)["image"]
            readable = np.flatnonzero(batch["weight"])
            logits, zero_shot = (
                np.asarray(x).reshape(-1, x.shape[-1])[readable]
                for x in classify(experiment.frozen, prompts, texts, images)
            )
            parts.append((logits, zero_shot, batch["label"][readable], batch["index"][readable]))
            progress.advance()
    found = Predictions(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    if not len(found.label):
        raise UserError(f"{config.dataset.name}: none of its {len(dataset.test)} test images could be read.")
    return found


def evaluate(experiment: Experiment, prompts: Any, workdir: pathlib.Path) -> dict[str, Any]:
    """Predicts, writes results.json (and predictions.npz with eval.save_logits); the results."""
    config, dataset, model = experiment.config, experiment.dataset, experiment.model
    found = predict(experiment, prompts)
    scores = class_scores(found.logits.argmax(-1), found.label, len(dataset.classnames))
    results = {
        "method": model.prompts.method,
        "dataset": config.dataset.name,
        "shots": config.dataset.shots,
        "seed": config.seed,
        "split": "test",
        "classes": config.dataset.classes,
        "n": len(found.label),
        "unreadable": len(dataset.test) - len(found.label),
        "accuracy": float((found.logits.argmax(-1) == found.label).mean()),
        "macro_f1": float(np.mean([s["f1"] for s in scores if s["n"]])),
        "zero_shot_accuracy": float((found.zero_shot_logits.argmax(-1) == found.label).mean()),
        "per_class": dict(zip(dataset.classnames, scores, strict=True)),
    }
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / RESULTS_FILE).write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    if config.eval.save_logits:
        np.savez(
            workdir / PREDICTIONS_FILE,
            logits=found.logits.astype(np.float32),
            label=found.label,
            path=np.array([dataset.test[i].path for i in found.row]),
            classnames=np.array(dataset.classnames),
        )
    return results


def class_scores(predicted: np.ndarray, label: np.ndarray, classes: int) -> list[dict[str, Any]]:
    """A class: its images n, the part of them that is recognised, and F1 (0 where it is undefined)."""
    scores = []
    for c in range(classes):
        hits, n, named = ((predicted == c) & (label == c)).sum(), (label == c).sum(), (predicted == c).sum()
        scores.append(
            {
                "n": int(n),
                "accuracy": float(hits / n) if n else None,
                "f1": float(2 * hits / (n + named)) if n + named else 0.0,
            }
        )
    return scores


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
