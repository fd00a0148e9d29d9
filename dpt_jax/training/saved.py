"""Prompts of a run: new ones, or saved ones with their record, if they fit the experiment.

The record of a training is in each of its checkpoints. It alone describes the prompts: an
evaluation with other settings is refused.
"""

import functools
import sys
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from dpt_jax import distributed
from dpt_jax.clip.blocks import Params, PyTree
from dpt_jax.clip.pretrained import Pretrained
from dpt_jax.config import BOUND, FREE, flat, sections_without_use
from dpt_jax.data.dataset import digest_of_examples
from dpt_jax.errors import UserError
from dpt_jax.io import as_path
from dpt_jax.logging import say
from dpt_jax.methods import METHODS
from dpt_jax.model import PromptedCLIP, init_prompts
from dpt_jax.prompts import Prompts
from dpt_jax.prompts.classifiers import CLASSIFIERS, for_classes
from dpt_jax.prompts.text import context_tokens
from dpt_jax.prompts.weights import norms_of
from dpt_jax.training.checkpoints import Saved, load_newest
from dpt_jax.training.optimizer import run_length
from dpt_jax.training.setup import Experiment, clip_fingerprint
from dpt_jax.training.workdir import has_config, load_config

Record = dict[str, Any]

AUXILIARY = "cavpt.classifier.kernel"  # the auxiliary classifier of CAVPT
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
        "clip": clip_fingerprint(experiment.pretrained),
        "data": {"name": name_of_data(config), "digest": dataset.digest},
        "train_list": digest_of_examples(dataset.train),
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


def unfinished(training: Mapping[str, Any]) -> str:
    """Return "epoch E of N" if a training has not finished, by its record or results; else "".

    Converted checkpoints have no epochs. A training that a callback has ended is finished.
    """
    epoch, epochs = training.get("epoch"), training.get("epochs")
    if epoch is None or epochs is None or epoch >= epochs or training.get("ended"):
        return ""
    return f"epoch {epoch} of {epochs}"


_init = jax.jit(init_prompts, static_argnums=0)  # compiled once for all runs of a model


def initial_prompts(experiment: Experiment) -> Prompts:
    """Return new prompts from the seed, merged with those of `init_from`."""
    config, model, pretrained = experiment.config, experiment.model, experiment.pretrained
    words = context_tokens(config.text_prompt.init, pretrained.tokenizer)
    start = None
    if learned := words[: model.config.text_length]:
        embedding = distributed.to_host(pretrained.params["text"]["token_embedding"])
        start = np.asarray(embedding, np.float32)[learned]
    norms = distributed.to_host(norms_of(pretrained.params))
    fresh = jax.tree.map(np.asarray, _init(model, jax.random.key(config.seed), start, norms))
    if not config.init_from:
        return fresh
    saved = load_newest(as_path(config.init_from))
    return merge_pretrained(fresh, saved, experiment, config.init_from)


def saved_prompts(experiment: Experiment, workdir: epath.Path) -> Saved:
    """Return the newest prompts of a workdir or prompt file, see `prompts_for`."""
    if not experiment.model.config.learns:
        return Saved(0, {}, {})
    return prompts_for(experiment, load_newest(workdir), str(workdir))


def prompts_for(experiment: Experiment, saved: Saved, source: str) -> Saved:
    """Return saved prompts for an evaluation, with a warning if their training has not finished.

    Raise UserError if settings, CLIP, classes or shapes of the experiment do not fit the prompts.
    """
    here = result_settings(experiment.config, experiment.model.config.first_layer)
    check_same_settings(source, saved.meta["settings"], here, OF_EVALUATION)
    # On standard error, since standard output may be JSON.
    if epoch := unfinished(saved.meta):
        say(
            f"{source}: its training has not finished; these prompts are from {epoch}.",
            file=sys.stderr,
        )
    check_same_clip(saved, experiment.pretrained, source)
    _check_classes(saved, experiment, source)
    prompts = {part: x for part, x in saved.prompts.items() if part != "classifier"}
    check_shapes(prompts, shapes_of(experiment.model), source)
    if experiment.model.config.classifier:
        prompts["classifier"] = _classifier(experiment, saved, source)
    return saved._replace(prompts=prompts)


def _classifier(experiment: Experiment, saved: Saved, source: str) -> Params:
    """Return the saved classifier for the classes of an experiment."""
    if "classifier" not in saved.prompts:
        raise UserError(f"{source} was stopped before its classifier was trained: train it again.")
    params, classifier = saved.prompts["classifier"], CLASSIFIERS[experiment.config.classifier.name]
    classnames, trained = list(experiment.dataset.classnames), saved.meta["classnames"]
    if trained == classnames:
        return params
    rows = np.array([trained.index(name) if name in trained else -1 for name in classnames])
    new = [name for name in classnames if name not in trained]
    if new and classifier.per_class:
        say(
            f"{source}: its classifier was not trained on {len(new)} of these {len(rows)} classes, "
            f"such as {new[0]!r}, and takes their texts.",
            file=sys.stderr,
        )
    return for_classes(classifier, params, rows)


def merge_pretrained(fresh: Prompts, saved: Saved, experiment: Experiment, source: str) -> Prompts:
    """Return new prompts, initialised from the saved parts.

    The auxiliary classifier belongs to its training classes: for others it starts fresh. Raise
    UserError if the parts do not fit, or none is shared.
    """
    if other := other_clip(saved, experiment.pretrained):
        say(f"{source} was trained on {other}: its prompts are used for initialisation only.")
    same_classes = _check_classes(saved, experiment, source)
    if not (shared := fresh.keys() & saved.prompts.keys()):
        raise UserError(
            f"init_from: {source} learned {' and '.join(saved.prompts)}, and method="
            f"{experiment.config.method} has nothing to start from it: choose a method that has."
        )
    merged = dict(fresh)
    for part in shared:
        own, theirs = fresh[part], saved.prompts[part]
        check_shapes({part: theirs}, {part: own}, source)
        if part == "cavpt":
            kernels = [prompt["classifier"]["kernel"].shape for prompt in (theirs, own)]
            if not same_classes or kernels[0] != kernels[1]:
                say(f"{source} has other classes, so the auxiliary classifier starts fresh.")
                theirs = {**theirs, "classifier": own["classifier"]}
        merged[part] = theirs
    return merged


def _check_classes(saved: Saved, experiment: Experiment, source: str) -> bool:
    """Return whether saved prompts were trained on these classes; True if unknown."""
    same = saved.meta.get("classnames") in (None, list(experiment.dataset.classnames))
    if experiment.model.config.class_specific and not same and "text" in saved.prompts:
        raise UserError(
            f"{source} has a context for each of its own classes (text_prompt.class_specific), and "
            "none for these."
        )
    return same


def shapes_of(model: PromptedCLIP) -> Prompts:
    """Return the prompts of a model as a tree of jax.ShapeDtypeStruct."""
    return jax.eval_shape(functools.partial(init_prompts, model), jax.random.key(0))


def check_shapes(saved: PyTree, wanted: PyTree, source: object) -> None:
    """Raise UserError naming an array that is missing, left over, or of another shape or type."""

    # The last axis of the auxiliary classifier is the classes of the training.
    there, here = (
        {name: f"{x.dtype} {x.shape[:-1] if name == AUXILIARY else x.shape}"
         for name, x in flat(tree).items()}
        for tree in (saved, wanted)
    )  # fmt: skip
    for name in [*here, *there]:
        found, expected = there.get(name, "missing"), here.get(name, "missing")
        if found != expected:
            raise UserError(
                f"{source}: {name} is {found}, but these settings and this CLIP need {expected}: "
                "use the settings and CLIP of its training."
            )


def check_same_run(config: ConfigDict, workdir: epath.Path, may_change: Collection[str]) -> str:
    """Return, in words, the settings that differ from those of the run in `workdir`, "" if none.

    Keys of parts that the method lacks do not count. dtype=auto is the type that the run was
    started with. Raise UserError if a key is not in `may_change`.
    """
    if not has_config(workdir):
        return ""
    old, new = (flat(one.to_dict()) for one in (load_config(workdir), config))
    if config.dtype == "auto":
        new["dtype"] = old["dtype"]
    without_use = sections_without_use(config.method)
    used = {key: value for key, value in old.items() if not key.startswith(without_use)}
    return check_same_settings(workdir, used, new, may_change)


def check_same_settings(
    source: object, old: Mapping[str, Any], new: Mapping[str, Any], may_change: Collection[str]
) -> str:
    """Return, in words, which settings of a run or prompts differ now, see `check_same_run`."""
    changed = {
        key: f"{key} ({value!r:.200} there, {new[key]!r:.200} now)"
        for key, value in old.items()
        if new.get(key, value) != value
    }
    if refused := [key for key in changed if key not in may_change]:
        resumes = {*FREE} >= {*may_change} and not {*BOUND}.intersection(refused)
        allow = ", or `dpt-jax train --allow_changes` to resume it with these" if resumes else ""
        raise UserError(
            f"{source} has a run with other settings: "
            f"{', '.join(changed[key] for key in refused)}; use those, or another --workdir{allow}."
        )
    return ", ".join(changed.values())


def other_clip(saved: Saved, pretrained: Pretrained) -> str:
    """Return in words how the CLIP of saved prompts differs, "" if it is the same."""
    theirs, own = saved.meta.get("clip", {}), clip_fingerprint(pretrained)
    different = [name for name in own if theirs.get(name) != own[name]]
    return f"a different CLIP (other {', '.join(different)})" if different else ""


def check_same_clip(saved: Saved, pretrained: Pretrained, source: object) -> None:
    """Raise UserError if prompts were trained on another CLIP, even one of the same sizes."""
    if other := other_clip(saved, pretrained):
        raise UserError(f"{source} was trained on {other}: give that as clip.weights.")
