"""The record of a training, in each of its checkpoints.

Only the record labels prompts: an evaluation with other settings is refused.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from dpt_jax.clip.pretrained import Pretrained
from dpt_jax.config import FREE, flat, sections_without_use
from dpt_jax.errors import UserError
from dpt_jax.io import as_path
from dpt_jax.methods import METHODS
from dpt_jax.training.checkpoints import Saved
from dpt_jax.training.optimizer import run_length
from dpt_jax.training.setup import Experiment, clip_fingerprint, fingerprint

Record = dict[str, Any]

# Settings that name a path.
NOT_RECORDED = ("init_from", "dataset.sample")
# Settings that an evaluation may change; its results record them.
OF_EVALUATION = (
    *("dtype", "dataset.name", "dataset.source", "dataset.classes", "dataset.template"),
    *("dataset.descriptions", "dataset.test_fraction"),
)


def name_of_data(config: ConfigDict) -> str:
    """Return the name of a dataset for display: for a folder of images, the folder's name."""
    dataset = config.dataset
    own = as_path(dataset.root).resolve().name if dataset.name == "folder" and dataset.root else ""
    return own or dataset.name


def result_settings(config: ConfigDict, first_layer: int = 0) -> dict[str, Any]:
    """Return the settings that affect a result, without those of parts that the method lacks.

    first_layer: of the class-aware prompts, which the configuration may count from the end.
    """
    absent = sections_without_use(config.method)
    left_out = {*FREE, *NOT_RECORDED}
    found = {
        key: value
        for key, value in flat(config.to_dict()).items()
        if key not in left_out and not key.startswith(absent)
    }
    return found | ({"cavpt.first_layer": first_layer} if first_layer else {})


def training_meta(experiment: Experiment, before: Saved | None = None) -> Record:
    """Return the record of a training, which may resume from the checkpoint `before`.

    `selection` says which images settings or epochs were chosen on: none, support, validation(n).
    `changes` of settings are {"step": number, "before": {key: value}}. Each checkpoint adds its
    epoch and number of parameters, and a classifier the settings that it has `chosen`.
    """
    config, dataset = experiment.config, experiment.dataset
    found = fingerprint(experiment.pretrained, dataset)
    steps, per_epoch = run_length(config, len(dataset.train))
    best = METHODS[config.method].in_towers and config.train.keep == "best"
    chosen_on = [f"validation({len(dataset.val)})"] if best else []
    chosen_on += ["support"] if config.classifier.select == "support" else []
    record = {
        "method": config.method,
        "dataset": config.dataset.name,
        "classes": config.dataset.classes,
        "epochs": -(-steps // per_epoch),
        "settings": result_settings(config, experiment.model.config.first_layer),
        "classnames": list(dataset.classnames),
        "clip": found["clip"],
        "data": {"name": name_of_data(config), "digest": found["data"]},
        "train_list": found["train"],
        "selection": ", ".join(chosen_on) or "none",
        "init_from": bool(config.init_from),
        "changes": [],
        "seconds": 0.0,
    }
    if before:
        record |= {key: before.meta[key] for key in ("init_from", "seconds", "changes")}
        was, now = (one["settings"] | {"train_list": one["train_list"]}
                    for one in (before.meta, record))  # fmt: skip
        if changed := {key: value for key, value in was.items() if now.get(key) != value}:
            record["changes"] = [*record["changes"], {"step": before.step, "before": changed}]
    return record


def other_clip(saved: Saved, pretrained: Pretrained) -> str:
    """Return in words how the CLIP of saved prompts differs, "" if it is the same."""
    theirs, own = saved.meta.get("clip", {}), clip_fingerprint(pretrained)
    different = [name for name in own if theirs.get(name) != own[name]]
    return f"a different CLIP (other {', '.join(different)})" if different else ""


def check_same_clip(saved: Saved, pretrained: Pretrained, source: object) -> None:
    """Raise UserError if prompts were trained on another CLIP, even one of the same sizes."""
    if other := other_clip(saved, pretrained):
        raise UserError(f"{source} was trained on {other}: give that as clip.weights.")


def unfinished(training: Mapping[str, Any]) -> str:
    """Return "epoch E of N" if a training has not finished, by its record or results; else "".

    Converted checkpoints have no epochs. A training that a callback has ended is finished.
    """
    epoch, epochs = training.get("epoch"), training.get("epochs")
    if epoch is None or epochs is None or epoch >= epochs or training.get("ended"):
        return ""
    return f"epoch {epoch} of {epochs}"
