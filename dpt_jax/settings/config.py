"""From flags and saved files to the one configuration of a run."""

import difflib
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from dpt_jax.errors import UserError
from dpt_jax.methods import PromptConfig
from dpt_jax.prompts.text import POSITIONS
from dpt_jax.runtime.devices import is_first
from dpt_jax.storage import prompt_file

CONFIG_FILE = "config.json"
# What a prompt is made for: a run that starts from another's prompts takes these from it.
PROMPT_SECTIONS = ("clip", "text_prompt", "visual_prompt", "cavpt")
SWITCHES = {"text_prompt": "length", "visual_prompt": "length", "cavpt": "top_k"}
# Keys that may change when a run is resumed, since its result does not depend on them.
FREE_ON_RESUME = (
    *(
        "dataset.root",
        "dataset.workers",
        "dataset.on_error",
        "eval.",
        "checkpoint.",
        "clip.weights",
    ),
    *("train.microbatch", "train.remat", "train.skip_nonfinite"),
)
# What the prompts of a run are bound to, so that it cannot go on with others at all.
BOUND_ON_RESUME = (
    "text_prompt.",
    "visual_prompt.",
    "cavpt.",
    "dataset.name",
    "dataset.classes",
    "init_from",
)
CHOICES = {
    "dtype": ("auto", "float32", "bfloat16"),
    "dataset.source": ("folder", "coop", "tfds"),
    "dataset.classes": ("all", "base", "new"),
    "dataset.on_error": ("raise", "skip"),
    "text_prompt.class_position": POSITIONS,
    "train.remat": ("auto", "none", "matmuls", "blocks"),
}
MINIMA = {
    "text_prompt.length": 0,
    "text_prompt.depth": 1,
    "visual_prompt.length": 0,
    "cavpt.top_k": 0,
    "loss.alpha": 0,
    "loss.guidance_epochs": 0,
    "train.batch_size": 1,
    "train.epochs": 1,
    "train.visual_lr": 0,
    "train.text_lr": 0,
    "train.warmup_epochs": 0,
    "train.microbatch": 0,
    "eval.batch_size": 1,
    "checkpoint.every_steps": 1,
    "checkpoint.every_minutes": 0,
    "checkpoint.keep": 1,
    "dataset.workers": 0,
    "seed": 0,
}


def method(config: ConfigDict) -> str:
    """zeroshot, coop, vpt, vlp or dpt, from the parts that are on."""
    return prompt_config(config, classes=1, layers=1).method


def prompt_config(
    config: ConfigDict, classes: int, layers: int, init_tokens: int = 0
) -> PromptConfig:
    """Return the prompts that a configuration asks for, on a vision tower of `layers` layers.

    init_tokens: how many tokens the words of text_prompt.init have, which the tokenizer knows.
    They decide the length of a text prompt that is on.
    """
    text, cavpt = config.text_prompt, config.cavpt
    first = cavpt.first_layer + layers + 1 if cavpt.first_layer < 0 else cavpt.first_layer
    return PromptConfig(
        classes=classes,
        text_length=text.length and (init_tokens or text.length),
        text_depth=text.depth,
        class_specific=text.class_specific,
        visual_length=config.visual_prompt.length,
        top_k=cavpt.top_k,
        first_layer=first if cavpt.top_k else 0,
    )


def templates(config: ConfigDict) -> list[str]:
    """The texts for a class, whose features are averaged where there are several."""
    return [template.strip() for template in config.dataset.template.split("|")]


def default_workdir(config: ConfigDict) -> pathlib.Path:
    """runs/METHOD/DATASET/SHOTSshot/seedN, below it base or new where these are the classes."""
    return run_dir(pathlib.Path("runs"), config)


def run_dir(runs: pathlib.Path, config: ConfigDict) -> pathlib.Path:
    """Where below `runs` a run is kept, see default_workdir."""
    dataset = config.dataset
    shots = "all" if dataset.shots < 0 else dataset.shots
    run = runs / method(config) / dataset.name / f"{shots}shot" / f"seed{config.seed}"
    return run if dataset.classes == "all" else run / dataset.classes


def shots_in_words(shots: int) -> str:
    """ "1 shot", "8 shots", "all images"; of zero-shot, 0, "no training" """
    return {-1: "all images", 0: "no training", 1: "1 shot"}.get(shots, f"{shots} shots")


def evaluation_dir(run: pathlib.Path, config: ConfigDict) -> pathlib.Path:
    """RUN/on/DATASET[-CLASSES], where a run's prompts are evaluated on another dataset or other classes.

    Of a prompt file, RUN is its name without .safetensors.
    """
    dataset = config.dataset
    return (
        prompt_file.folder_of(run)
        / "on"
        / (dataset.name if dataset.classes == "all" else f"{dataset.name}-{dataset.classes}")
    )


def check(config: ConfigDict) -> None:
    """Raises UserError for a value no run can have."""
    values = flat(config.to_dict())
    for key, value in values.items():
        if value is None and key != "train.schedule_epochs":
            raise UserError(f"{key} is None: give a value.")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{key} is {value}: give a number.")
        if isinstance(value, int) and abs(value) >= 2**31:
            raise UserError(f"{key} is {value}: it must be below 2³¹.")
        if isinstance(value, str) and not value.isprintable():
            raise UserError(f"{key}: {value!r} has a character that cannot be shown.")
    for key, minimum in MINIMA.items():
        if not values[key] >= minimum:
            raise UserError(f"{key} is {values[key]}: it must be at least {minimum}.")
    for key, choices in CHOICES.items():
        if values[key] not in choices:
            raise UserError(f"{key}: {values[key]!r} is not one of {', '.join(choices)}.")
    if config.dataset.shots == 0 or config.dataset.shots < -1:
        raise UserError(
            f"dataset.shots is {config.dataset.shots}: give a positive number, or -1 for all images."
        )
    if config.train.schedule_epochs is not None and config.train.schedule_epochs < 1:
        raise UserError(
            f"train.schedule_epochs is {config.train.schedule_epochs}: it must be at least 1."
        )
    for template in templates(config):
        if template.count("{}") != 1 or template.count("{") + template.count("}") != 2:
            raise UserError(
                f"dataset.template: {template!r} should have one {{}}, for the class name."
            )


def save(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Writes config.json, on the first host.  Raises UserError where the workdir cannot be made."""
    if not is_first():
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / CONFIG_FILE).write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    except OSError as reason:
        raise UserError(f"--workdir: {workdir} cannot be written to ({reason}).") from reason


def save_once(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Writes config.json unless the workdir has one, from when its run was started."""
    if not (workdir / CONFIG_FILE).exists():
        save(config, workdir)


def load(workdir: pathlib.Path, defaults: ConfigDict) -> ConfigDict:
    """The configuration saved in a workdir or prompt file, on top of defaults for keys it does not have."""
    if prompt_file.is_prompt_file(workdir):
        file, saved = workdir, prompt_file.read_header(workdir)["settings"]
    else:
        file = workdir / CONFIG_FILE
        saved = _read_json(file)
    if not isinstance(saved, Mapping):
        raise UserError(f"{file} does not hold settings, but {saved!r:.80}.")
    config = defaults.copy_and_resolve_references()
    for key, value in flat(saved).items():
        try:
            set_key(config, key, value)
        except TypeError as reason:
            raise UserError(f"{file}: {key} cannot be {value!r} ({reason}).") from reason
        except (KeyError, AttributeError, ValueError) as reason:
            known = nearest(key, list(flat(defaults.to_dict())))
            raise UserError(
                f"{file}: key {key} is not one of this version's configuration{known}"
            ) from reason
    return config


def load_saved(workdir: pathlib.Path) -> ConfigDict:
    """The configuration of a workdir or prompt file, checked.  Raises UserError where it is neither."""
    # configs/ stands beside the package and imports from it.
    from configs.dpt import get_config

    config = load(workdir, get_config())
    try:
        check(config)
    except UserError as reason:
        raise UserError(f"{workdir}: {reason}") from reason
    return config


def _read_json(file: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError) as reason:
        raise UserError(
            f"{file.parent} is no workdir of a run: it has no {CONFIG_FILE}."
        ) from reason
    except ValueError as reason:
        raise UserError(f"{file} is not valid JSON ({reason}).") from reason


def resolve(
    config: ConfigDict,
    overrides: Mapping[str, Any],
    dataset_named: bool,
    workdir: pathlib.Path,
    evaluate: bool,
) -> ConfigDict:
    """The configuration a run goes by.

    config: as the config file and the command line make it. overrides: what the
    command line says, {key: value}. dataset_named: whether the config file was
    given a dataset (`configs/dpt.py:NAME`). Evaluating goes by the saved
    configuration of the workdir, or of the one that `init_from` names on the
    command line; a training run that starts from another's prompts takes their
    sizes from there. What the command line says wins over both.
    """
    started = (workdir / CONFIG_FILE).exists()
    if evaluate and (overrides.get("init_from") or started):
        saved = load(pathlib.Path(overrides.get("init_from") or workdir), config)
        if dataset_named and config.dataset.name != saved.dataset.name:
            shots = saved.dataset.shots  # those that the prompts were trained with
            saved.dataset = config.dataset.copy_and_resolve_references()
            saved.dataset.shots = shots
        config = saved
    elif config.init_from:
        # A run that has started has these in its own file; the other may be gone by now.
        source = load(workdir if started else pathlib.Path(config.init_from), config)
        config = config.copy_and_resolve_references()
        for section in PROMPT_SECTIONS:
            switch = SWITCHES.get(section)
            # A part that is off in either stays as the method has it: off, or new.
            if switch is None or (config[section][switch] and source[section][switch]):
                config[section] = source[section]
    before = config.dataset.name, config.dataset.classes
    for key, value in overrides.items():
        set_key(config, key, value)
    check(config)
    other = (
        evaluate
        and overrides.get("init_from")
        and (config.dataset.name, config.dataset.classes) != before
    )
    if other and config.text_prompt.class_specific and config.text_prompt.length:
        raise UserError(
            f"{config.init_from} has a context for each of its own classes (text_prompt.class_specific), which means "
            f"nothing for other classes, those of {config.dataset.name} ({config.dataset.classes})."
        )
    return config


def check_workdir(
    config: ConfigDict, workdir: pathlib.Path, free: tuple[str, ...] = FREE_ON_RESUME
) -> str:
    """In words, which settings differ from those of the run that the workdir holds; "" where none does.

    free: what may differ, by its beginning. Raises UserError where others do.
    """
    if not (workdir / CONFIG_FILE).exists():
        return ""
    old, new = flat(load(workdir, config).to_dict()), flat(config.to_dict())
    changed = [key for key in new if old.get(key) != new[key]]
    refused = [key for key in changed if not key.startswith(free)]

    def in_words(keys: Sequence[str]) -> str:
        return ", ".join(f"{key} ({old.get(key)!r} there, {new[key]!r} now)" for key in keys)

    if refused:
        bound = any(key.startswith(BOUND_ON_RESUME) for key in refused)
        other = (
            "another --workdir"
            if bound
            else "another --workdir, or tell --allow_changes that you mean it"
        )
        raise UserError(
            f"{workdir} holds a run with other settings: {in_words(refused)}; use them, or {other}."
        )
    return in_words(changed)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    result: dict[str, Any] = {}
    for key, value in tree.items():
        result.update(
            flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
        )
    return result


def nearest(key: str, known: Sequence[str]) -> str:
    """ "; did you mean KEY?", or "." where nothing is near"""
    # By the whole key, and by its last part under whatever section.
    last = {name.rpartition(".")[2]: name for name in reversed(known)}
    found = difflib.get_close_matches(key, known, 1, 0.7) or [
        last[name] for name in difflib.get_close_matches(key.rpartition(".")[2], list(last), 1, 0.7)
    ]
    return f"; did you mean {found[0]}?" if found else "."


def set_key(config: ConfigDict, key: str, value: Any) -> None:
    """Sets "section.name".  Raises KeyError for an unknown key, TypeError for a value of another type."""
    section, _, name = key.rpartition(".")
    part = config[section] if section else config
    if name not in part:
        raise KeyError(key)
    if isinstance(part[name], ConfigDict):
        raise TypeError("it is a section of keys")
    part[name] = value
