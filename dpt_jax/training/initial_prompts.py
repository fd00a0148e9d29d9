"""The prompts of an experiment: new ones, or saved ones that fit its CLIP, classes and shapes."""

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from dpt_jax import distributed, settings
from dpt_jax.errors import UserError
from dpt_jax.io import as_path
from dpt_jax.logging import say
from dpt_jax.model import PromptedCLIP
from dpt_jax.prompts import Prompts
from dpt_jax.prompts.text import context_tokens
from dpt_jax.training.checkpoints import Saved, load_newest
from dpt_jax.training.fingerprint import check_not_relabelled, clip_fingerprint
from dpt_jax.training.setup import Experiment


@functools.lru_cache(maxsize=distributed.KEPT_PROGRAMS)
def make_init(model: PromptedCLIP) -> Callable[[jax.Array, np.ndarray | None], Prompts]:
    """Return PromptedCLIP.init, compiled once for all runs of the same model."""
    return jax.jit(model.init)


def initial_prompts(experiment: Experiment) -> Any:
    """Return new prompts from the seed; the parts that `init_from` has come from there."""
    config, model, pretrained = experiment.config, experiment.model, experiment.pretrained
    words = context_tokens(config.text_prompt.init, pretrained.tokenizer)
    start = None
    if learned := words[: model.prompts.text_length]:
        embedding = distributed.to_host(pretrained.params["text"]["token_embedding"])
        start = np.asarray(embedding, np.float32)[learned]
    fresh = jax.tree.map(np.asarray, make_init(model)(jax.random.key(config.seed), start))
    if not config.init_from:
        return fresh
    saved = load_newest(as_path(config.init_from))
    return adopt(fresh, saved, experiment, config.init_from)


def saved_prompts(experiment: Experiment, workdir: epath.Path) -> Saved:
    """Return the newest prompts of a workdir or prompt file, as the experiment takes them.

    Raise UserError where they do not fit.
    """
    if not experiment.model.prompts.learned:
        return Saved(0, {}, {})
    return fit(experiment, load_newest(workdir), str(workdir))


def fit(experiment: Experiment, saved: Saved, source: str) -> Saved:
    """Return the saved prompts that the experiment evaluates; say so where they are unfinished.

    Raise UserError naming the source where they do not fit.
    """
    if saved.meta:
        check_not_relabelled(experiment, saved.meta, source)
    # On standard error, since standard output may be JSON.
    if far := unfinished(saved.meta):
        say(f"{source}: its training has not ended, these prompts are of {far}.", file=sys.stderr)
    fresh = jax.eval_shape(experiment.model.init, jax.random.key(0))
    return saved._replace(prompts=adopt(fresh, saved, experiment, source, evaluate=True))


def unfinished(training: Mapping[str, Any]) -> str:
    """Return how far a training is, "" where it has ended or is not known.

    training: the epoch and the number of epochs, as checkpoints name them. Those of other or older
    programs do not have both.
    """
    epoch, epochs = training.get("epoch"), training.get("epochs")
    if epoch is None or epochs is None or epoch >= epochs:
        return ""
    return f"epoch {epoch} of {epochs}"


def other_clip(saved: Saved, experiment: Experiment) -> str:
    """Return in words how the CLIP of saved prompts differs, "" if it is the same."""
    theirs, own = saved.meta.get("clip", {}), clip_fingerprint(experiment.pretrained)
    different = [name for name in own if theirs.get(name) != own[name]]
    return f"another CLIP (other {', '.join(different)})" if different else ""


def adopt(
    fresh: Prompts, saved: Saved, experiment: Experiment, source: str, evaluate: bool = False
) -> Prompts:
    """Return `fresh` with the parts that `saved` has; to evaluate, it must have them all.

    Two parts are bound to the classes of the training. The auxiliary classifier starts anew for
    other classes, and is not used to evaluate. A class-specific context is refused for them.

    source: where the saved prompts are from. Raise UserError naming it where they do not fit.
    """
    classnames = list(experiment.dataset.classnames)
    weights = experiment.config.clip.weights
    if other := other_clip(saved, experiment):
        other = f"{source} was trained on {other} than {weights}"
        if evaluate:
            raise UserError(
                f"{other}, where its prompts mean nothing: give the one that it was trained on."
            )
        say(f"{other}: its prompts are a start like any other there.")
    same_classes = saved.meta.get("classnames") in (None, classnames)
    if experiment.model.prompts.class_specific and not same_classes and "text" in saved.prompts:
        raise UserError(
            f"{source} has a context for each of its own classes (text_prompt.class_specific), "
            "which means nothing for other classes: train one on these, or use a shared context."
        )
    for part in saved.prompts:
        if part not in fresh and evaluate:
            say(f"{source} has a {part} prompt, which these settings switch off: it is left out.")
    adopted = dict(fresh)
    for part, wanted in fresh.items():
        if part not in saved.prompts:
            if evaluate:
                raise UserError(
                    f"{source} has no {part} prompt, but the configuration switches it on."
                )
            continue
        theirs = saved.prompts[part]
        _check_shapes(theirs, wanted, part, source)
        if part == "cavpt" and not evaluate:
            shapes = [prompt["classifier"]["kernel"].shape for prompt in (theirs, wanted)]
            if not same_classes or shapes[0] != shapes[1]:
                say(
                    f"{source} was trained on other classes, so the auxiliary classifier starts "
                    "anew."
                )
                theirs = {**theirs, "classifier": wanted["classifier"]}
        adopted[part] = theirs
    return adopted


def _shapes(tree: Any, part: str) -> dict[str, tuple[Any, ...]]:
    """Return the shapes by name, with "classes" for the classes of CAVPT's classifier.

    Their number is not compared: the classifier is bound to the classes of its training.
    """
    found = {name: tuple(x.shape) for name, x in settings.flat({part: tree}).items()}
    kernel = "cavpt.classifier.kernel"
    if len(found.get(kernel, ())) == 3:
        found[kernel] = (*found[kernel][:-1], "classes")
    return found


def _check_shapes(theirs: Any, wanted: Any, part: str, source: str) -> None:
    """Raise UserError naming a prompt that is missing, left over, or of another shape or type."""
    there, here = _shapes(theirs, part), _shapes(wanted, part)
    for name in [*here, *there]:
        if there.get(name) != here.get(name):
            raise UserError(
                f"{source}: prompt {name} has shape {there.get(name)}, but this backbone and "
                "configuration "
                f"ask for {here.get(name)}."
            )
    for name, value in settings.flat({part: theirs}).items():
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise UserError(f"{source}: prompt {name} is {value.dtype}, not floating point.")
