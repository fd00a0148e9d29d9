"""The configuration that a training or an evaluation goes by."""

from collections.abc import Mapping

from etils import epath
from ml_collections import ConfigDict

from dpt_jax.data.catalogue import DEFAULT_DATASET
from dpt_jax.errors import UserError
from dpt_jax.io import as_path
from dpt_jax.methods import (
    CLASS_AWARE,
    METHODS,
    TEXT,
    VISUAL,
    ZERO_SHOT,
    Consistency,
    PromptConfig,
)
from dpt_jax.settings.keys import Value
from dpt_jax.settings.recipes import FEW_SHOT, published
from dpt_jax.settings.saved import CONFIG_FILE, load
from dpt_jax.settings.schema import check, defaults, set_key

# A run that starts from another run's prompts takes its CLIP, and the sizes of the parts that both
# have.
SECTION_OF = {TEXT: "text_prompt", VISUAL: "visual_prompt", CLASS_AWARE: "cavpt"}
# Keys of these that add parameters of their own.
OWN = ("coupled", "conditioned")


def of_method(name: str, dataset: str = DEFAULT_DATASET, protocol: str = "") -> ConfigDict:
    """Return the published settings of a method on a dataset.

    The linear probe's are those of plain CLIP. dataset: an embedded one, one of the paper's, or
    "folder" for your own images; DATASET:PROTOCOL names the protocol too. protocol: one of
    recipes.PROTOCOLS, "" for that. Raise UserError for another name.
    """
    dataset, _, named = dataset.partition(":")
    config = defaults()
    config.method = name if name in METHODS else ZERO_SHOT
    config.dataset.name = dataset
    for key, value in published(name, dataset, protocol or named or FEW_SHOT).items():
        set_key(config, key, value)
    return config


def prompt_config(
    config: ConfigDict, classes: int, layers: int, init_tokens: int = 0
) -> PromptConfig:
    """Return the sizes of the learned parts of a configuration.

    Args:
      config: Checked by `check`.
      classes: Number of classes.
      layers: Layers of the image tower.
      init_tokens: Tokens of text_prompt.init, 0 if there are none or they are not known yet. They
        set the length of the context unless text_prompt.fixed_words keeps some of them fixed.

    Raises:
      UserError: Fewer initial tokens than text_prompt.length are to be learned.
    """
    parts = METHODS[config.method].parts
    text, visual, cavpt, loss = config.text_prompt, config.visual_prompt, config.cavpt, config.loss
    if TEXT in parts and text.fixed_words and 0 < init_tokens < text.length:
        raise UserError(
            f"text_prompt.length is {text.length}, but of text_prompt.init={text.init!r} the first "
            f"{init_tokens} tokens can be learned at most (text_prompt.fixed_words): give fewer, "
            "or no words at all."
        )
    first = cavpt.first_layer + layers + 1 if cavpt.first_layer < 0 else cavpt.first_layer
    return PromptConfig(
        classes=classes,
        text_length=0
        if TEXT not in parts
        else text.length
        if text.fixed_words
        else init_tokens or text.length,
        text_depth=text.depth,
        class_specific=text.class_specific,
        conditioned=text.conditioned and TEXT in parts,
        visual_length=visual.length if VISUAL in parts else 0,
        visual_depth=max(visual.depth, 0),
        ln_pre=visual.ln_pre,
        coupled=visual.coupled and VISUAL in parts,
        top_k=cavpt.top_k if CLASS_AWARE in parts else 0,
        first_layer=first if CLASS_AWARE in parts else 0,
        consistency=Consistency(
            text=loss.text_consistency,
            text_distance=loss.text_distance,
            image=loss.image_consistency,
            logits=loss.logit_consistency,
        ),
        method=config.method,
    )


def templates(config: ConfigDict, key: str = "dataset.template") -> list[str]:
    """Return the texts of a class; where there are several, their features are averaged."""
    section, _, name = key.partition(".")
    return [template.strip() for template in config[section][name].split("|")]


def settings_for_training(
    config: ConfigDict, overrides: Mapping[str, Value], workdir: epath.Path
) -> ConfigDict:
    """Return the checked configuration of a training in `workdir`.

    config: from the config file and the command line. overrides: what the command line says; it
    wins. A run that starts from another run's prompts takes their sizes from there.
    """
    if config.init_from:
        # A run that has started has these in its own file; the other run may be gone by now.
        started = (workdir / CONFIG_FILE).exists()
        source = load(workdir if started else as_path(config.init_from), config)
        config = config.copy_and_resolve_references()
        config.clip = source.clip.copy_and_resolve_references()
        for part, section in SECTION_OF.items():
            if all(part in METHODS[one.method].parts for one in (config, source)):
                own = {key: config[section][key] for key in OWN if key in config[section]}
                config[section] = source[section].copy_and_resolve_references()
                config[section].update(own)
    return _with(config, overrides)


def settings_for_evaluation(
    config: ConfigDict, overrides: Mapping[str, Value], dataset_named: bool, workdir: epath.Path
) -> ConfigDict:
    """Return the checked configuration of an evaluation of what `workdir` or init_from holds.

    config, overrides: as for settings_for_training. dataset_named: whether the config file was
    given a dataset (`configs/dpt.py:NAME`), which then replaces that of the saved configuration.
    Raise UserError where prompts are bound to other classes.
    """
    elsewhere = overrides.get("init_from")
    if not elsewhere and not (workdir / CONFIG_FILE).exists():
        return _with(config, overrides)
    saved = load(as_path(str(elsewhere)) if elsewhere else workdir, config)
    if dataset_named and config.dataset.name != saved.dataset.name:
        shots = saved.dataset.shots  # those that the prompts were trained with
        saved.dataset = config.dataset.copy_and_resolve_references()
        saved.dataset.shots = shots
    trained_on = saved.dataset.name, saved.dataset.classes
    found = _with(saved, overrides)
    moved = elsewhere and (found.dataset.name, found.dataset.classes) != trained_on
    if moved and found.text_prompt.class_specific and TEXT in METHODS[found.method].parts:
        raise UserError(
            f"{found.init_from} has a context for each of its own classes "
            "(text_prompt.class_specific), which means nothing for other classes, those of "
            f"{found.dataset.name} ({found.dataset.classes})."
        )
    return found


def _with(config: ConfigDict, overrides: Mapping[str, Value]) -> ConfigDict:
    for key, value in overrides.items():
        set_key(config, key, value)
    check(config)
    return config
