"""Saved prompts taken over by a model: checked against its CLIP, its classes and its shapes."""

import hashlib
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from dpt_jax import settings
from dpt_jax.clip.config import CLIPConfig
from dpt_jax.errors import UserError
from dpt_jax.prompts import Prompts
from dpt_jax.runtime import devices
from dpt_jax.runtime.console import say
from dpt_jax.storage.checkpoints import Saved

if TYPE_CHECKING:
    from dpt_jax.inference.experiment import Experiment


def backbone_id(params: Any, replicated: bool = True) -> str:
    """Return what tells one CLIP from another of its sizes, whatever type it is loaded in.

    replicated: whether they have a leading device axis.
    """
    some = [params["vision"]["class_embedding"], params["vision"]["ln_post"], params["logit_scale"]]
    some = devices.to_host(some) if replicated else some
    rounded = [np.asarray(x).astype(jnp.bfloat16).tobytes() for x in jax.tree.leaves(some)]
    return hashlib.sha256(b"".join(rounded)).hexdigest()[:16]


def computes(clip: CLIPConfig) -> dict[str, Any]:
    """Return what a CLIP does with its weights, and with images, that the weights do not say."""
    return {
        "preprocessing": clip.preprocessing.to_dict(),
        **{
            name: {"heads": tower.heads, "activation": tower.activation}
            for name, tower in (("vision", clip.vision), ("text", clip.text))
        },
    }


def _other_clip(saved: Saved, experiment: "Experiment") -> str:
    """Return in what the CLIP of saved prompts is another one, "" where it is the same."""
    if saved.meta.get("backbone") not in (None, backbone_id(experiment.frozen.clip)):
        return "another CLIP"
    own, theirs = computes(experiment.model.clip), saved.meta.get("computes") or {}
    part = next((name for name in own if theirs.get(name, own[name]) != own[name]), "")
    if not part:
        return ""
    what = "preprocessing of images" if part == "preprocessing" else f"heads or activation ({part})"
    return f"other {what}"


def adopt(
    fresh: Prompts, saved: Saved, experiment: "Experiment", source: str, evaluate: bool = False
) -> Prompts:
    """Return `fresh` with the parts that `saved` has; to evaluate, it must have them all.

    Two parts are bound to the classes of the training. The auxiliary classifier starts anew for
    other classes, and is not used to evaluate. A class-specific context is refused for them.

    source: where the saved prompts are from. Raise UserError naming it where they do not fit.
    """
    classnames = list(experiment.dataset.classnames)
    weights = experiment.config.clip.weights
    if other := _other_clip(saved, experiment):
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
