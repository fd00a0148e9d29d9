"""The record of a training, and the list of its images.

Each checkpoint has the record. Only the record labels prompts: an evaluation with other settings
is refused.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from dpt_jax import distributed
from dpt_jax.config import FREE, flat, sections_without_use
from dpt_jax.data.dataset import digest_of_examples
from dpt_jax.data.records import Dataset, Example
from dpt_jax.errors import UserError
from dpt_jax.io import as_path, write_whole
from dpt_jax.logging import say
from dpt_jax.methods import METHODS
from dpt_jax.training.checkpoints import Saved
from dpt_jax.training.optimizer import run_length
from dpt_jax.training.setup import Experiment, fingerprint
from dpt_jax.training.workdir import SPLIT_FILE, TRAIN_FILES

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


def selection(config: ConfigDict, validation: int) -> str:
    """Return which images settings or epochs were chosen on: none, support, validation(n)."""
    by = []
    if METHODS[config.method].in_towers and config.train.keep == "best":
        by.append(f"validation({validation})")
    if config.classifier.select == "support":
        by.append("support")
    return ", ".join(by) or "none"


def training_meta(experiment: Experiment, before: Saved | None = None) -> Record:
    """Return the record of a training, for the metadata of its checkpoints.

    Args:
      experiment: What is trained.
      before: The checkpoint from which the run resumes.

    Returns:
      method, dataset, classes and epochs; `settings`, see `result_settings`; the class names; the
      fingerprints of the CLIP, of the data and of the training images; the `selection`; whether
      the prompts started from others; `changes` of settings, a list of {"step": number, "before":
      {key: value}}; the `seconds` that it has taken so far. A classifier with a `selection` adds
      the `chosen` settings.
    """
    config = experiment.config
    found = fingerprint(experiment.pretrained, experiment.dataset)
    steps, per_epoch = run_length(config, len(experiment.dataset.train))
    record = {
        "method": config.method,
        "dataset": config.dataset.name,
        "classes": config.dataset.classes,
        "epochs": -(-steps // per_epoch),
        "settings": result_settings(config, experiment.model.config.first_layer),
        "classnames": list(experiment.dataset.classnames),
        "clip": found["clip"],
        "data": {"name": name_of_data(config), "digest": found["data"]},
        "train_list": found["train"],
        "selection": selection(config, len(experiment.dataset.val)),
        "init_from": bool(config.init_from),
        "changes": [],
        "seconds": 0.0,
    }
    if before:
        was, now = (one["settings"] | {"train_list": one["train_list"]}
                    for one in (before.meta, record))  # fmt: skip
        changed = {key: value for key, value in was.items() if now.get(key) != value}
        change = [{"step": before.step, "before": changed}] if changed else []
        record["changes"] = [*before.meta["changes"], *change]
        record["init_from"] = before.meta["init_from"]
        record["seconds"] = before.meta.get("seconds", 0.0)
    return record


def check_not_relabelled(experiment: Experiment, record: Mapping[str, Any], source: str) -> None:
    """Raise UserError if an evaluation's settings differ from the training's, or without a record.

    Args:
      experiment: The evaluation.
      record: The record of the prompts, see `training_meta`.
      source: Where they are from.
    """
    here = result_settings(experiment.config, experiment.model.config.first_layer)
    trained = record.get("settings")
    if not isinstance(trained, Mapping) or not isinstance(record.get("changes"), list):
        raise UserError(f"{source} has no record of its training: train or convert it again.")
    for key, value in here.items():
        if key not in OF_EVALUATION and trained.get(key, value) != value:
            raise UserError(
                f"{source} was trained with {key}={trained[key]!r}, so it cannot be evaluated "
                f"with {value!r}: leave out --config.{key}, or name the run that you mean."
            )


def unfinished(training: Mapping[str, Any]) -> str:
    """Return "epoch E of N" if a training has not finished, else "".

    training: its record, or the origin of results. Converted checkpoints have no epochs. A
    training that a callback has ended is finished.
    """
    epoch, epochs = training.get("epoch"), training.get("epochs")
    if epoch is None or epochs is None or epoch >= epochs or training.get("ended"):
        return ""
    return f"epoch {epoch} of {epochs}"


def check_same_images(
    examples: Sequence[Example],
    workdir: epath.Path,
    meta: Mapping[str, Any],
    allow_changes: bool = False,
) -> None:
    """Raise UserError if a run resumes with different images.

    meta: the record of its checkpoint. With `allow_changes`, print the change instead.
    """
    if meta["train_list"] == digest_of_examples(examples):
        return
    file = workdir / TRAIN_FILES
    text = file.read_bytes().decode(errors="surrogateescape") if file.exists() else ""
    before, now = text.split("\n")[:-1], [example.path for example in examples]
    gone, new = sorted(set(before) - set(now)), sorted(set(now) - set(before))
    change = f"{len(before)} before, {len(now)} now"
    change += f"; {len(new)} new, such as {new[0]}" if new else ""
    change += f"; {len(gone)} gone, such as {gone[0]}" if gone else ""
    if not (gone or new):
        change = "a different order, or different labels"
    if not allow_changes:
        raise UserError(
            f"the images of {workdir} have changed since it was trained ({change}): use another "
            "--workdir, restore its images, or resume with the new ones by --allow_changes."
        )
    say(f"{workdir}: resuming with other images than it was trained on ({change}).")


def write_train_files(dataset: Dataset, workdir: epath.Path) -> None:
    """Write the list of a run's training images and its split, on host 0."""
    if distributed.is_first():
        paths = "".join(f"{example.path}\n" for example in dataset.train)
        write_whole(workdir / TRAIN_FILES, paths)
    write_split(dataset, workdir)


def write_split(dataset: Dataset, workdir: epath.Path) -> None:
    """Write the split of a dataset whose folders do not define it, on host 0."""
    if dataset.split and distributed.is_first():
        write_whole(workdir / SPLIT_FILE, dataset.split)
