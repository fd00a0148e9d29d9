"""Evaluation: predictions on the whole test split, and the files that hold them."""

import functools
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.typing import ArrayLike, DTypeLike

from dpt_jax import distributed
from dpt_jax.clip.blocks import Params, PyTree
from dpt_jax.clip.config import CLIPConfig
from dpt_jax.data import descriptions
from dpt_jax.data.dataset import digest_of_files
from dpt_jax.errors import UserError
from dpt_jax.evaluation.features import EncodedBatch, read_test_images
from dpt_jax.evaluation.metrics import calibration, class_scores, distinct
from dpt_jax.evaluation.results import PREDICTIONS_FILE, RESULTS_FILE
from dpt_jax.io import make_folder, write_whole
from dpt_jax.logging import Progress, quiet, say
from dpt_jax.model import Outputs, PromptedCLIP, Texts
from dpt_jax.prompts import Prompts
from dpt_jax.prompts.config import PromptConfig
from dpt_jax.training.checkpoints import Saved, digest_of_json
from dpt_jax.training.record import name_of_data, training_meta
from dpt_jax.training.setup import Experiment, Frozen, fingerprint


class Predictions(NamedTuple):
    """Predictions for the N readable test images, in the dataset's order.

    Attributes:
      logits: (N, C) float32.
      zero_shot_logits: (N, C) float32.
      label: (N,), the true class indices.
      row: (N,), indices into the test split.
    """

    logits: np.ndarray
    zero_shot_logits: np.ndarray
    label: np.ndarray
    row: np.ndarray


class Programs(NamedTuple):
    """Compiled programs; every argument and result has a leading device axis.

    Attributes:
      encode_texts: (frozen, prompts) -> the texts of the classes.
      classify: (frozen, prompts, texts, images (devices, b, H, W, 3)) -> outputs of the model.
      encode_images: (CLIP's parameters, images) -> features of frozen CLIP (devices, b, E). The
        same program serves all methods.
      logits: (frozen, prompts, texts, images, features) -> logits (devices, b, C) of the method
        and of zero-shot CLIP. Methods that leave the image tower need no images.
      merge: (CLIP's parameters, prompts) -> prompts with learned weights merged into CLIP's. The
        other programs take either.
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

    def apply(
        frozen: Frozen, prompts: Prompts, *args: PyTree, method: str, **kwargs: PyTree
    ) -> PyTree:
        variables = {"params": {"clip": frozen.clip, "prompts": prompts}}
        return model.apply(variables, *args, method=method, **kwargs)

    def encode_texts(frozen: Frozen, prompts: Prompts) -> Texts:
        own = frozen.packed, frozen.texts, distributed.AXIS
        return apply(frozen, prompts, *own, mean=frozen.mean, method="texts")

    def classify(frozen: Frozen, prompts: Prompts, texts: Texts, images: jax.Array) -> Outputs:
        outputs = apply(frozen, prompts, images, texts, method="__call__")
        return outputs._replace(auxiliary_logits=None)

    def merge(clip: Params, prompts: Prompts) -> Prompts:
        variables = {"params": {"clip": clip, "prompts": prompts}}
        found: Any = model.apply(variables, method="merge")
        return found

    def logits(
        frozen: Frozen,
        prompts: Prompts,
        texts: Texts,
        images: jax.Array | None,
        features: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        zero_shot = apply(frozen, prompts, features, texts, method="zero_shot_of")
        if images is None:
            outputs = apply(frozen, prompts, texts, zero_shot, method="classify")
        else:
            outputs = apply(frozen, prompts, images, texts, zero_shot, method="__call__")
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
    """Compute something of each readable test image.

    All devices of all hosts share a batch: host h of n takes images h, h + n, h + 2n and so on.

    Args:
      experiment: Its test split is read.
      title: Title of the progress bar.
      compute: From a batch to arrays (devices, b, …).

    Returns:
      These columns (N, …) of the N readable images, then label (N,) and row (N,), the index into
      the test split. All hosts have them all.
    """
    images, hosts = len(experiment.dataset.test), jax.process_count()
    rows = -(-min(experiment.config.eval.batch_size, images) // hosts)
    steps = -(-images // (rows * hosts))
    encode_images = make_programs(experiment.model).encode_images
    batches = read_test_images(experiment, rows, steps, encode_images)
    parts = []
    with Progress(title, steps) as progress:
        for batch, columns in distributed.overlapped(
            batches, compute, lambda x: len(x.known["label"])
        ):
            parts.append((*columns, *(batch.known[name] for name in ("label", "index", "weight"))))
            progress.advance()

    def gather(parts: Sequence[np.ndarray]) -> np.ndarray:
        # The last hosts may have fewer images. Their padding has weight 0.
        return distributed.rows_of_all_hosts(np.concatenate(parts), rows * steps)

    *columns, weight = map(gather, zip(*parts, strict=True))
    return [column[weight > 0] for column in columns]


def check_finite(results: Mapping[str, np.ndarray], prompts: Prompts, clip: Params) -> None:
    """Raise UserError if an array is not finite, naming the likely cause.

    Args:
      results: Arrays by their names in the message, those of frozen CLIP first.
      prompts: The learned parameters. The first one that is not finite is named.
      clip: CLIP's parameters, of which the same holds.
    """
    for what, array in results.items():
        if np.isfinite(array).all():
            continue
        for whose, tree in (("prompt", prompts), ("weight of CLIP", clip)):
            for name, value in flax.traverse_util.flatten_dict(tree, sep=".").items():
                if not bool(jnp.isfinite(value).all()):
                    raise UserError(f"{what} are not finite: the {whose} {name} has such values.")
        of = "CLIP's weights" if "zero-shot CLIP" in what else "the prompts and CLIP's weights"
        raise UserError(f"{what} are not finite: check {of}, or try dtype=float32.")


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


def write_results(
    experiment: Experiment, found: Predictions, saved: Saved, workdir: epath.Path
) -> dict[str, Any]:
    """Score predictions and write the files, see `evaluate`; return the results."""
    dataset = experiment.dataset
    scores = class_scores(found.logits.argmax(-1), found.label, distinct(dataset.classnames))
    unread = sorted({example.label for example in dataset.test} - set(found.label.tolist()))
    if unread:
        classes = ", ".join(dataset.classnames[label] for label in unread)
        say(f"no test image of these classes could be read: {classes}.")
    tested = [one for one in scores.values() if one["n"]]
    results = {
        **describe(experiment, saved),
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
    if experiment.config.eval.save_logits:
        content = io.BytesIO()
        np.savez(
            content,
            logits=found.logits.astype(np.float32),
            label=found.label,
            path=np.array([dataset.test[i].path for i in found.row]),
            classnames=np.array(dataset.classnames),
            **{
                key: results["of"][key]
                for key in ("step", "prompts", "backbone", "template", "test_list")
            },
        )
        write_whole(workdir / PREDICTIONS_FILE, content.getvalue())
    # Last: if there is a results.json, the evaluation is complete.
    text = json.dumps(results, indent=2, ensure_ascii=False) + "\n"
    write_whole(workdir / RESULTS_FILE, text.encode(errors="backslashreplace"))
    return results


def task(experiment: Experiment, here: Mapping[str, Any]) -> str:
    """Return NAME@VERSION of a dataset: its images, splits, classes in use and their texts.

    here: the experiment's `fingerprint`.
    """
    config = experiment.config
    version = digest_of_json(
        {
            "data": here["data"],
            "test": here["test"],
            "classnames": list(experiment.dataset.classnames),
            "template": config.dataset.template,
            **({"descriptions": own} if (own := config.dataset.descriptions) else {}),
        }
    )
    return f"{name_of_data(config)}@{version[:8]}"


def describe(experiment: Experiment, saved: Saved) -> dict[str, Any]:
    """Return the labels of an evaluation's results, the origin of the prompts under "of".

    Labels of the training come from its record, see training.record. Only those of the test come
    from the settings of the evaluation.
    """
    config, here = experiment.config, fingerprint(experiment.pretrained, experiment.dataset)
    record = saved.meta or training_meta(experiment)
    trained = {
        key: value
        for key, value in record["settings"].items()
        if key not in ("method", "seed") and not key.startswith("dataset.")
    }
    tested = {
        "dtype": np.dtype(experiment.model.dtype).name,
        "dataset.template": config.dataset.template,
    }
    if config.dataset.descriptions:
        tested["dataset.descriptions"] = descriptions.digest(config.dataset.descriptions)
    changes = {"changes": record["changes"]} if record["changes"] else {}
    return {
        "method": record["method"],
        "dataset": config.dataset.name,
        "shots": record["settings"]["dataset.shots"],
        "seed": record["settings"]["seed"],
        "split": "test",
        "selection": record.get("selection", "none"),
        "task": task(experiment, here),
        "classes": config.dataset.classes,
        "trained_on": {key: record[key] for key in ("dataset", "classes")} if saved.meta else None,
        "parameters": sum(x.size for x in jax.tree.leaves(saved.prompts)) or None,
        "of": {
            "step": saved.step,
            "epoch": saved.meta.get("epoch"),
            "epochs": saved.meta.get("epochs"),
            "prompts": saved.digest,
            "backbone": digest_of_json(here["clip"]),
            "template": config.dataset.template,
            "test_list": here["test"],
            "test_files": digest_of_files(experiment.dataset),
            "data": {"name": name_of_data(config), "digest": here["data"]},
            "trained_on": saved.meta.get("data"),
            "train_list": saved.meta.get("train_list"),
            "init_from": bool(saved.meta.get("init_from")),
            "settings": {**trained, **tested, **changes},
        },
    }
