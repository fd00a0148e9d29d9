"""Results: scores of predictions, the files that hold them, and whether these are current."""

import collections
import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from dpt_jax import distributed
from dpt_jax.clip.pretrained import Pretrained
from dpt_jax.data.catalogue import digest_of_descriptions
from dpt_jax.data.dataset import digest_of_examples, digest_of_files
from dpt_jax.errors import UserError
from dpt_jax.io import as_path, make_folder, reading, write_whole
from dpt_jax.logging import say
from dpt_jax.methods import METHODS, ROWS, ZERO_SHOT
from dpt_jax.training.checkpoints import Saved, digest_of_json, newest
from dpt_jax.training.saved import name_of_data, training_meta
from dpt_jax.training.setup import Experiment, clip_fingerprint
from dpt_jax.training.workdir import load_config, source_of

RESULTS_FILE = "results.json"
PREDICTIONS_FILE = "predictions.npz"
OF_PREDICTIONS = ("step", "prompts", "backbone", "template", "test_list")
CALIBRATION_BINS = 15

Results = Mapping[str, Any]


class Predictions(NamedTuple):
    """Predictions for the N readable test images, in the dataset's order."""

    logits: np.ndarray  # (N, C) float32
    zero_shot_logits: np.ndarray  # (N, C) float32
    label: np.ndarray  # (N,), the true class indices
    row: np.ndarray  # (N,), indices into the test split


def write_results(
    experiment: Experiment, found: Predictions, saved: Saved, workdir: epath.Path
) -> dict[str, Any]:
    """Score predictions and write the files, see `evaluate`; return the results."""
    dataset = experiment.dataset
    scores = class_scores(found.logits.argmax(-1), found.label, distinct(dataset.classnames))
    if unread := {example.label for example in dataset.test} - set(found.label.tolist()):
        classes = ", ".join(dataset.classnames[label] for label in sorted(unread))
        say(f"no test image of these classes could be read: {classes}.")
    tested = [one for one in scores.values() if one["n"]]
    results = {
        **_describe(experiment, saved),
        "n": len(found.label),
        "unreadable": len(dataset.test) - len(found.label),
        "accuracy": float((found.logits.argmax(-1) == found.label).mean()),
        "balanced_accuracy": float(np.mean([one["accuracy"] for one in tested])),
        "macro_f1": float(np.mean([one["f1"] for one in tested])),
        "zero_shot_accuracy": float((found.zero_shot_logits.argmax(-1) == found.label).mean()),
        "calibration": calibration(found.logits, found.label),
        "zero_shot_calibration": calibration(found.zero_shot_logits, found.label),
        "per_class": scores,
    }
    if not distributed.is_first():
        return results
    make_folder(workdir, "--workdir")
    if not experiment.config.eval.save_logits:
        (workdir / PREDICTIONS_FILE).unlink(missing_ok=True)  # of earlier results
    else:
        content = io.BytesIO()
        np.savez(
            content,
            logits=found.logits.astype(np.float32),
            label=found.label,
            path=np.array([dataset.test[i].path for i in found.row]),
            classnames=np.array(dataset.classnames),
            **{key: results["of"][key] for key in OF_PREDICTIONS},
        )
        write_whole(workdir / PREDICTIONS_FILE, content.getvalue())
    # Last: if there is a results.json, the evaluation is complete.
    text = json.dumps(results, indent=2, ensure_ascii=False) + "\n"
    write_whole(workdir / RESULTS_FILE, text.encode(errors="backslashreplace"))
    return results


def _describe(experiment: Experiment, saved: Saved) -> dict[str, Any]:
    """Return the labels of an evaluation's results, the origin of the prompts under "of".

    Labels of the training come from its record, see training.saved. Labels of the test come from
    the settings of the evaluation.
    """
    config, dataset = experiment.config, experiment.dataset
    record, template = saved.meta or training_meta(experiment), config.dataset.template
    tested = {"dtype": np.dtype(experiment.model.dtype).name, "dataset.template": template}
    version = {
        "data": dataset.digest,
        "test": digest_of_examples(dataset.test),
        "classnames": list(dataset.classnames),
        "template": template,
    }
    if texts := config.dataset.descriptions:
        tested["dataset.descriptions"] = digest_of_descriptions(texts)
        version["descriptions"] = texts
    trained = {
        key: value
        for key, value in record["settings"].items()
        if key not in ("method", "seed") and not key.startswith("dataset.")
    }
    if saved.meta:
        trained["dataset.natural"] = record["settings"].get("dataset.natural", False)
    if record["changes"]:
        trained["changes"] = record["changes"]
    # Converted prompts are all learned.
    sizes = [x.size for x in jax.tree.leaves(saved.prompts)]
    return {
        "method": record["method"],
        "dataset": config.dataset.name,
        "shots": record["settings"]["dataset.shots"],
        "seed": record["settings"]["seed"],
        "split": "test",
        "selection": record.get("selection", "none"),
        **({"chosen": record["chosen"]} if record.get("chosen") else {}),
        "task": f"{name_of_data(config)}@{digest_of_json(version)[:8]}",
        "classes": config.dataset.classes,
        "trained_on": {key: record[key] for key in ("dataset", "classes")} if saved.meta else None,
        "parameters": record.get("parameters", sum(sizes)) or None,
        "of": {
            "step": saved.step,
            **{key: saved.meta.get(key) for key in ("epoch", "epochs", "train_list")},
            "prompts": saved.digest,
            "backbone": digest_of_json(clip_fingerprint(experiment.pretrained)),
            "template": template,
            "test_list": version["test"],
            "test_files": digest_of_files(dataset),
            "data": {"name": name_of_data(config), "digest": dataset.digest},
            "trained_on": saved.meta.get("data"),
            "init_from": bool(saved.meta.get("init_from")),
            "settings": trained | tested,
        },
    }


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities of logits (…, C), in their dtype.

    scipy.special has the same function, but importing it adds half a second to every command.
    """
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def class_scores(
    predicted: np.ndarray, label: np.ndarray, names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Score each class of predicted and true class indices (N,).

    Returns:
      By name: `n`, the images of the class; `accuracy`, None without images; `f1`, 0 if undefined;
      `predicted`, the number of its images by predicted class, largest first.
    """
    scores = {}
    for c, name in enumerate(names):
        own = predicted[label == c]
        hits, n, answers = int((own == c).sum()), len(own), int((predicted == c).sum())
        scores[name] = {
            "n": n,
            "accuracy": hits / n if n else None,
            "f1": 2 * hits / (n + answers) if n + answers else 0.0,
            "predicted": {
                names[other]: count
                for other, count in collections.Counter(own.tolist()).most_common()
            },
        }
    return scores


def calibration(logits: np.ndarray, label: np.ndarray) -> dict[str, Any]:
    """Compare confidence with accuracy (Guo et al. 2017, equation 5) by logits (N, C) and labels.

    Returns:
      `ece`, the expected calibration error from 0 to 1; `bins`, for each of 15 equal intervals of
      confidence that is not empty: the number of `images`, mean `confidence` and `accuracy`.
    """
    probabilities = softmax(logits.astype(np.float64))
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
    """Add the class index to names that several classes share, such as ImageNet's "missile"."""
    times = collections.Counter(classnames)
    return [
        name if times[name] == 1 else f"{name} (class {i})" for i, name in enumerate(classnames)
    ]


def read_result(file: epath.Path) -> dict[str, Any]:
    """Read one results.json.  Raise UserError if it is missing or damaged."""
    with reading(file, "the results of a run; evaluate the run again with --mode=eval"):
        results = json.loads(file.read_text(encoding="utf-8"))
        if results["method"] not in ROWS or not 0 <= results["accuracy"] <= 1 or not results["of"]:
            raise ValueError("its method, accuracy or origin is not valid")
    return results


def has_own_data(experiment: Experiment, saved: Saved, workdir: epath.Path) -> bool:
    """Return whether an evaluation is on the dataset of the run in a workdir.

    The name, the classes, and either the images or their folder must be the same. If the record of
    the prompts names no dataset, the dataset of the first evaluation counts.
    """
    asked, own = experiment.config.dataset, dict(saved.meta)
    if not own.get("data"):
        with contextlib.suppress(UserError):
            results = read_result(workdir / RESULTS_FILE)
            own |= {"data": results["of"]["data"], "dataset": results["dataset"]}
            own["classes"] = results["classes"]
    if own and (own["dataset"], own["classes"]) != (asked.name, asked.classes):
        return False
    if not own.get("data") or own["data"]["digest"] == experiment.dataset.digest:
        return True
    roots = load_config(workdir).dataset.root, asked.root
    return all(roots) and len({as_path(root).resolve() for root in roots}) == 1


def outdated(results: Results, workdir: epath.Path) -> tuple[str, Saved | None]:
    """Return why results are outdated, "" if they are not, and the newest prompts of their run.

    The prompts are without arrays, or None if they cannot be found.
    """
    of, found = results["of"], None
    if results["method"] != ZERO_SHOT:
        found = newest(source_of(workdir))
    if found is None or found.digest == of["prompts"]:
        return "", found
    return (
        f"{workdir / RESULTS_FILE} is from the prompts of step {of['step']}, but the newest of the "
        f"run are from step {found.step}"
    ), found


def read_current(workdir: epath.Path) -> dict[str, Any]:
    """Return the results of a workdir.

    Raise UserError if there are none, or if they are not of its newest prompts.
    """
    results = read_result(workdir / RESULTS_FILE)
    why, _ = outdated(results, workdir)
    if why:
        raise UserError(f"{why}: evaluate again with --mode=eval.")
    return results


def finished(workdir: epath.Path, config: ConfigDict) -> bool:
    """Return whether a workdir has the results that a configuration asks for.

    They must be of the newest prompts, trained to the end, and of the same test classes and texts.
    Data and CLIP are not read: see `of_same_sources`.
    """
    try:
        results = read_current(workdir)
    except UserError:
        return False
    if config.eval.save_logits and not (workdir / PREDICTIONS_FILE).exists():
        return False
    of, data = results["of"], config.dataset
    by_epochs = METHODS[config.method].in_towers and not config.train.steps_per_shot
    epochs = config.train.epochs if by_epochs else of["epochs"]
    described = of["settings"].get("dataset.descriptions", "")
    return (
        (results["dataset"], results["classes"]) == (data.name, data.classes)
        and of["template"] == data.template
        and described == digest_of_descriptions(data.descriptions)
        and (results["method"] == ZERO_SHOT or of["epoch"] in (None, epochs))
    )


def of_same_sources(
    workdir: epath.Path, pretrained: Pretrained, data: str, test_files: str
) -> bool:
    """Return whether results are of this CLIP and these digests of the dataset and test files."""
    of = read_result(workdir / RESULTS_FILE)["of"]
    now = digest_of_json(clip_fingerprint(pretrained)), data, test_files
    return now == (of["backbone"], of["data"]["digest"], of.get("test_files"))


def summary(results: Results) -> str:
    """Describe the results in one or two lines, for the terminal."""
    accuracy, zero_shot = 100 * results["accuracy"], 100 * results["zero_shot_accuracy"]
    method, n, macro_f1 = results["method"], results["n"], results["macro_f1"]
    line = f"{method}: {accuracy:.1f} % of {n} test images right, macro F1 {macro_f1:.3f}"
    if results["unreadable"]:
        line += f" ({results['unreadable']} more could not be read and were left out)"
    if method == ZERO_SHOT:
        return line
    return f"{line}\nzero-shot: {zero_shot:.1f} %, difference {accuracy - zero_shot:+.1f} points"
