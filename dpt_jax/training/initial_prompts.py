"""The prompts of an experiment: new ones, or saved ones that fit its CLIP, classes and shapes."""

import functools
import sys
from collections.abc import Callable

import jax
import numpy as np
from etils import epath

from dpt_jax import distributed
from dpt_jax.clip.blocks import Params, PyTree
from dpt_jax.clip.pretrained import Pretrained
from dpt_jax.config import flat
from dpt_jax.errors import UserError
from dpt_jax.io import as_path
from dpt_jax.logging import say
from dpt_jax.model import PromptedCLIP, init_prompts
from dpt_jax.prompts import Prompts
from dpt_jax.prompts.classifiers import CLASSIFIERS, for_classes, shapes
from dpt_jax.prompts.text import context_tokens
from dpt_jax.prompts.weights import norms_of
from dpt_jax.training.checkpoints import Saved, load_newest
from dpt_jax.training.record import check_not_relabelled, unfinished
from dpt_jax.training.setup import Experiment, clip_fingerprint

AUXILIARY = "cavpt.classifier.kernel"  # the auxiliary classifier of CAVPT


@functools.lru_cache(maxsize=distributed.KEPT_PROGRAMS)
def make_init(
    model: PromptedCLIP,
) -> Callable[[jax.Array, np.ndarray | None, Params], Prompts]:
    """Return init_prompts, compiled once for all runs of the same model."""
    return jax.jit(functools.partial(init_prompts, model))


def initial_prompts(experiment: Experiment) -> Prompts:
    """Return new prompts from the seed, merged with those of `init_from`."""
    config, model, pretrained = experiment.config, experiment.model, experiment.pretrained
    words = context_tokens(config.text_prompt.init, pretrained.tokenizer)
    start = None
    if learned := words[: model.config.text_length]:
        embedding = distributed.to_host(pretrained.params["text"]["token_embedding"])
        start = np.asarray(embedding, np.float32)[learned]
    norms = distributed.to_host(norms_of(pretrained.params))
    fresh = jax.tree.map(np.asarray, make_init(model)(jax.random.key(config.seed), start, norms))
    if not config.init_from:
        return fresh
    saved = load_newest(as_path(config.init_from))
    return merge_pretrained(fresh, saved, experiment, config.init_from)


def saved_prompts(experiment: Experiment, workdir: epath.Path) -> Saved:
    """Return the newest prompts of a workdir or prompt file.  Raise UserError if none fit."""
    if not experiment.model.config.learns:
        return Saved(0, {}, {})
    return fit(experiment, load_newest(workdir), str(workdir))


def fit(experiment: Experiment, saved: Saved, source: str) -> Saved:
    """Return saved prompts for an evaluation, with a warning if their training has not finished.

    source: where they are from. Raise UserError naming it if they do not fit.
    """
    check_not_relabelled(experiment, saved.meta, source)
    # On standard error, since standard output may be JSON.
    if epoch := unfinished(saved.meta):
        say(
            f"{source}: its training has not finished; these prompts are from {epoch}.",
            file=sys.stderr,
        )
    if other := other_clip(saved, experiment.pretrained):
        raise UserError(
            f"{source} was trained on {other} than {experiment.config.clip.weights}: give the CLIP "
            "that it was trained on."
        )
    _check_classes(saved, experiment, source)
    prompts = {part: x for part, x in saved.prompts.items() if part != "classifier"}
    check_shapes(prompts, shapes_of(experiment.model), source)
    if experiment.model.config.classifier:
        prompts["classifier"] = _classifier(experiment, saved, source)
    return saved._replace(prompts=prompts)


def _classifier(experiment: Experiment, saved: Saved, source: str) -> Params:
    """Return the saved classifier for the classes of an experiment.

    Raise UserError if it is missing or does not fit.
    """
    if "classifier" not in saved.prompts:
        raise UserError(
            f"{source} has no classifier, since its training was stopped before that stage: run "
            "the training command again."
        )
    params, model = saved.prompts["classifier"], experiment.model
    classifier = CLASSIFIERS[model.config.classifier]
    classnames = list(experiment.dataset.classnames)
    trained = saved.meta.get("classnames") or classnames
    wanted = shapes(
        classifier,
        len(params.get("keys", [0])),
        len(trained),
        model.clip_config.embed_dim,
        experiment.config.classifier,
    )
    check_shapes({"classifier": params}, {"classifier": wanted}, source)
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
    source: where the saved prompts are from. Raise UserError naming it if they do not fit.
    """
    if other := other_clip(saved, experiment.pretrained):
        say(
            f"{source} was trained on {other} than {experiment.config.clip.weights}: its prompts "
            "are used for initialisation only."
        )
    same_classes = _check_classes(saved, experiment, source)
    merged = dict(fresh)
    for part in fresh.keys() & saved.prompts.keys():
        own, theirs = fresh[part], saved.prompts[part]
        check_shapes({part: theirs}, {part: own}, source)
        if part == "cavpt":
            shapes = [prompt["classifier"]["kernel"].shape for prompt in (theirs, own)]
            if not same_classes or shapes[0] != shapes[1]:
                say(
                    f"{source} was trained on other classes, so the auxiliary classifier starts "
                    "fresh."
                )
                theirs = {**theirs, "classifier": own["classifier"]}
        merged[part] = theirs
    return merged


def other_clip(saved: Saved, pretrained: Pretrained) -> str:
    """Return in words how the CLIP of saved prompts differs, "" if it is the same."""
    theirs, own = saved.meta.get("clip", {}), clip_fingerprint(pretrained)
    different = [name for name in own if theirs.get(name) != own[name]]
    return f"a different CLIP (other {', '.join(different)})" if different else ""


def _check_classes(saved: Saved, experiment: Experiment, source: str) -> bool:
    """Return whether saved prompts were trained on these classes; True if unknown.

    Raise UserError if they were not, and have a context for each class.
    """
    same = saved.meta.get("classnames") in (None, list(experiment.dataset.classnames))
    if experiment.model.config.class_specific and not same and "text" in saved.prompts:
        raise UserError(
            f"{source} has a context for each of its own classes (text_prompt.class_specific): "
            "train one on these classes, or use a shared context."
        )
    return same


def shapes_of(model: PromptedCLIP) -> Prompts:
    """Return the prompts of a model as a tree of jax.ShapeDtypeStruct."""
    return jax.eval_shape(functools.partial(init_prompts, model), jax.random.key(0))


def check_shapes(saved: PyTree, wanted: PyTree, source: str) -> None:
    """Raise UserError naming an array that is missing, left over, or of another shape or type.

    Args:
      saved: A tree of arrays.
      wanted: A tree of arrays or shapes.
      source: Where the saved ones are from.
    """

    def describe(tree: dict[str, jax.Array], name: str) -> str:
        if name not in tree:
            return "missing"
        shape = tree[name].shape
        # The last axis of the auxiliary classifier is the classes of the training.
        return f"{tree[name].dtype} {shape[:-1] if name == AUXILIARY else shape}"

    there, here = flat(saved), flat(wanted)
    for name in [*here, *there]:
        found, expected = describe(there, name), describe(here, name)
        if found != expected:
            raise UserError(
                f"{source}: {name} is {found}, but these settings and this CLIP need {expected}: "
                "use those of its training."
            )
