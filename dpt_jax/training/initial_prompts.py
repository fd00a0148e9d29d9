"""The prompts of an experiment: new ones, or saved ones that fit its CLIP, classes and shapes."""

import functools
import sys

import jax
import numpy as np
from etils import epath

from dpt_jax import distributed
from dpt_jax.clip.blocks import Params, PyTree
from dpt_jax.config import flat
from dpt_jax.errors import UserError
from dpt_jax.io import as_path
from dpt_jax.logging import say
from dpt_jax.model import PromptedCLIP, init_prompts
from dpt_jax.prompts import Prompts
from dpt_jax.prompts.classifiers import CLASSIFIERS, for_classes
from dpt_jax.prompts.text import context_tokens
from dpt_jax.prompts.weights import norms_of
from dpt_jax.training.checkpoints import Saved, load_newest
from dpt_jax.training.record import (
    OF_EVALUATION,
    check_same_clip,
    other_clip,
    result_settings,
    unfinished,
)
from dpt_jax.training.setup import Experiment
from dpt_jax.training.workdir import check_same_settings

AUXILIARY = "cavpt.classifier.kernel"  # the auxiliary classifier of CAVPT


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
    """Return the newest prompts of a workdir or prompt file, see `fit`."""
    if not experiment.model.config.learns:
        return Saved(0, {}, {})
    return fit(experiment, load_newest(workdir), str(workdir))


def fit(experiment: Experiment, saved: Saved, source: str) -> Saved:
    """Return saved prompts for an evaluation, with a warning if their training has not finished.

    Raise UserError if its settings, CLIP, classes or shapes do not fit them.
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

    The auxiliary classifier belongs to its training classes: for others it starts fresh.
    """
    if other := other_clip(saved, experiment.pretrained):
        say(f"{source} was trained on {other}: its prompts are used for initialisation only.")
    same_classes = _check_classes(saved, experiment, source)
    merged = dict(fresh)
    for part in fresh.keys() & saved.prompts.keys():
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
                "use those of its training."
            )
