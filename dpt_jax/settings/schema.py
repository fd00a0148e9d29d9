"""What holds for every key: the defaults, the check of values, and the page that lists them."""

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict, config_dict

from dpt_jax.data.catalogue import EMBEDDED
from dpt_jax.errors import UserError, can_be_shown
from dpt_jax.methods import METHODS, TEXT, VISUAL
from dpt_jax.settings.keys import KEYS, SCHEMA, Key, Value

# Sizes of parts, and a method without that part.
WITHOUT = {"text_prompt.length": "vpt", "visual_prompt.length": "coop", "cavpt.top_k": "vlp"}
LARGEST = 2**31  # whole numbers on devices have 32 bits


def defaults() -> ConfigDict:
    """Return a configuration that has every key at its default."""
    config = ConfigDict()
    for key in SCHEMA:
        section, _, name = key.name.rpartition(".")
        if section and section not in config:
            config[section] = ConfigDict()
        part = config[section] if section else config
        part[name] = config_dict.placeholder(key.kind) if key.default is None else key.default
    return config


def check(config: ConfigDict) -> None:
    """Raise UserError naming a key whose value no run can have."""
    for name, value in flat(config.to_dict()).items():
        _check_value(KEYS[name], value)
    if config.dataset.shots == 0 or config.dataset.shots < -1:
        raise UserError(
            f"dataset.shots is {config.dataset.shots}: give a positive number, or -1 for all "
            "images."
        )
    data = config.dataset
    if data.root and data.name in EMBEDDED and data.source == "folder":
        raise UserError(
            f"dataset.root is {data.root}, but {data.name} is part of this package and has no "
            "folder: leave dataset.root out, or name the folder's images with "
            "--config=configs/METHOD.py:folder."
        )
    if config.visual_prompt.depth == 0 or config.visual_prompt.depth < -1:
        raise UserError(
            f"visual_prompt.depth is {config.visual_prompt.depth}: give a positive number, or -1 "
            "for all layers."
        )
    method, text = METHODS[config.method], config.text_prompt
    if TEXT in method.parts and text.fixed_words and text.class_position != "end":
        raise UserError(
            "text_prompt.fixed_words keeps words between the context and a name behind it, so "
            f"text_prompt.class_position cannot be {text.class_position}: give end."
        )
    coupled = config.visual_prompt.coupled
    for key, part in (
        ("text_prompt.conditioned", TEXT if text.conditioned else ""),
        ("visual_prompt.coupled", TEXT if coupled else ""),
        ("visual_prompt.coupled", VISUAL if coupled else ""),
    ):
        if part and part not in method.parts:
            raise UserError(
                f"{key} needs a {part}, but {method.label} (method={method.name}) has none: turn "
                "it off, or choose another method."
            )
    if coupled and text.class_specific:
        raise UserError(
            "visual_prompt.coupled computes the visual tokens from one context, but "
            "text_prompt.class_specific learns one for each class: turn one of them off."
        )
    for key, possible, compared in (
        ("text_consistency", TEXT in method.parts, "texts"),
        ("image_consistency", method.visual, "image features"),
        ("logit_consistency", bool(method.parts), "logits"),
    ):
        if config.loss[key] and not possible:
            raise UserError(
                f"loss.{key} is {config.loss[key]:g}, but the {compared} of {method.label} "
                f"(method={method.name}) are those of frozen CLIP: give 0, or another method."
            )
    _check_templates("dataset.template", config.dataset.template)
    if config.loss.template:
        _check_templates("loss.template", config.loss.template)


def _check_templates(key: str, templates: str) -> None:
    for template in templates.split("|"):
        if template.count("{}") != 1 or template.count("{") + template.count("}") != 2:
            raise UserError(
                f"{key}: {template.strip()!r} should have one {{}}, for the class name."
            )


def _check_value(key: Key, value: Any) -> None:
    if value is None:
        if key.default is None:
            return
        raise UserError(f"{key.name} is None: give a value.")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{key.name} is {value}: give a number.")
    if isinstance(value, int) and abs(value) >= LARGEST:
        raise UserError(f"{key.name} is {value}: it must be below 2³¹.")
    if isinstance(value, str) and not can_be_shown(value):
        raise UserError(f"{key.name}: {value!r} has a character that cannot be shown.")
    if key.name in WITHOUT and value == 0:
        raise UserError(
            f"{key.name} is 0: to train without that part choose a method that does not have it, "
            f"such as --config=configs/{WITHOUT[key.name]}.py."
        )
    if key.least is not None and not value >= key.least:
        raise UserError(f"{key.name} is {value}: it must be at least {key.least:g}.")
    if key.choices and value not in key.choices:
        raise UserError(f"{key.name}: {value!r} is not one of {', '.join(key.choices)}.")


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {"a.b": 1} for {"a": {"b": 1}}."""
    result: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            result.update(flat(value, f"{prefix}{key}."))
        else:
            result[prefix + key] = value
    return result


def set_key(config: ConfigDict, key: str, value: Value) -> None:
    """Set "section.name".  Raise KeyError for an unknown key, TypeError for another type."""
    section, _, name = key.rpartition(".")
    part = config[section] if section else config
    if name not in part:
        raise KeyError(key)
    if isinstance(part[name], ConfigDict):
        raise TypeError("it is a section of keys")
    part[name] = value


def nearest(key: str, known: Sequence[str] = tuple(KEYS)) -> str:
    """Return "; did you mean KEY?", or "." where no key is near."""
    # By the whole key, and by its last part in whatever section.
    last = {name.rpartition(".")[2]: name for name in reversed(known)}
    found = difflib.get_close_matches(key, known, 1, 0.7) or [
        last[name] for name in difflib.get_close_matches(key.rpartition(".")[2], list(last), 1, 0.7)
    ]
    return f"; did you mean {found[0]}?" if found else "."


def page() -> str:
    """Return docs/settings.md: every key with its default, range and help."""
    lines = [
        "# Settings",
        "",
        "Each key, as `--config.KEY=VALUE`. The defaults are DPT's published settings; other "
        "methods and datasets set their own.",
        "`dpt-jax settings` prints this page.",
        "",
        "| key | default | values | what it does | may change when a run goes on |",
        "| --- | --- | --- | --- | --- |",
    ]
    for key in SCHEMA:
        default = "" if key.default == "" else f"`{key.default}`"
        text = key.help.replace("|", "\\|")
        lines.append(f"| `{key.name}` | {default} | {key.range} | {text} | {key.resume.value} |")
    return "\n".join(lines) + "\n"
