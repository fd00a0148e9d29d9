"""Configurations: from a command line or Python, what is valid, what a resumed run may change.

`configs/common.py` has every key. A configuration is a ConfigDict of these keys.
"""

import difflib
import importlib
import math
import os
import pathlib
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict, config_flags

from dpt_jax import prompts
from dpt_jax.configs import common
from dpt_jax.data.catalogue import parse_descriptions, read_descriptions
from dpt_jax.errors import UserError, can_be_shown
from dpt_jax.methods import CLASS_AWARE, CLASSIFIER, METHODS, TEXT, VISUAL, WEIGHTS, ZERO_SHOT
from dpt_jax.prompts.classifiers import CLASSIFIERS

Value = int | float | bool | str


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"a.b": 1} for {"a": {"b": 1}}."""
    found: dict[str, Any] = flatten_dict(tree, sep=".")
    return found


KEYS = flat(common.get_config().to_dict())  # with their defaults
LARGEST = 2**31  # integers on devices have 32 bits

CHOICES: dict[str, Collection[str]] = {
    "method": METHODS,
    "dtype": ("auto", "float32", "bfloat16"),
    "dataset.source": ("folder", "coop", "tfds"),
    "dataset.classes": ("all", "base", "new"),
    "dataset.on_error": ("raise", "skip"),
    "text_prompt.class_position": ("end", "middle", "front"),
    "loss.text_distance": (prompts.COSINE, prompts.L1),
    "weights.kind": (prompts.LORA, prompts.NORMS, prompts.ALL_NORMS),
    "classifier.name": ("", *CLASSIFIERS),
    "classifier.schedule": ("epochs", "steps"),
    "classifier.select": ("none", "support"),
    "train.optimizer": ("sgd", "adamw"),
    "train.schedule": ("epochs", "steps"),
    "train.keep": ("last", "best"),
    "train.remat": ("none", "matmuls", "blocks"),
}
# The least value of a number; it is 0 for all other keys.
AT_LEAST = {
    "cavpt.first_layer": -LARGEST,  # counted from the end
    **dict.fromkeys(("dataset.cache_gb", "dataset.shots", "classifier.train_views"), -1),
    "visual_prompt.depth": -1,
    **dict.fromkeys(("text_prompt.length", "text_prompt.depth", "visual_prompt.length"), 1),
    **dict.fromkeys(("cavpt.top_k", "weights.rank", "train.batch_size", "eval.batch_size"), 1),
    **dict.fromkeys(("checkpoint.every_steps", "checkpoint.keep"), 1),
}
# Keys for which -1 means all; 0 would mean none, which is impossible.
COUNT_OR_ALL = ("dataset.shots", "visual_prompt.depth")

# A setting, and what excludes it: another one, the dataset or the method.
EXCLUSIVE = (
    ("dataset.root", "a bundled dataset"),
    ("dataset.split", "a dataset with a split of its own"),
    ("train.steps_per_shot", "dataset.shots=-1"),
    ("train.steps_per_shot", "train.average_deviation"),  # which averages epochs
    ("train.keep=best", "train.average_deviation"),
    ("train.keep=best", "a method with a classifier"),  # which is trained after the prompts
    ("classifier.steps_per_shot", "dataset.shots=-1"),
    ("classifier.select=support", "a method without settings to choose"),
    ("text_prompt.conditioned", "a method without a text prompt"),
    ("text_prompt.conditioned", "a method with a classifier"),  # which starts from one set of texts
    ("text_prompt.class_specific", "visual_prompt.coupled"),  # which takes one context
    ("text_prompt.class_position=front", "text_prompt.fixed_words"),  # which are before the name
    ("text_prompt.class_position=middle", "text_prompt.fixed_words"),
    ("text_prompt.conditioned", "dropout of learned weights"),  # which one set of texts has
    ("visual_prompt.coupled", "a method without a text prompt"),
    ("visual_prompt.coupled", "a method without a visual prompt"),
    ("loss.text_consistency", "a method without a text prompt"),
    ("loss.image_consistency", "a method with a frozen image tower"),
    ("loss.logit_consistency", "a method without learned parts"),
    ("weights.image_layers=none", "weights.text_layers=none"),  # nothing would be learned
    ("several texts a class (dataset.template)", "a learned text tower"),  # which encodes one
    ("several texts a class (dataset.descriptions)", "a learned text tower"),
)

# FREE: keys that a resumed run may change, since results do not depend on them. BOUND: keys that it
# may never change, since prompts depend on them. UNBOUND: what it may change with --allow_changes.
FREE = (
    *("clip.weights", "dataset.root", "dataset.on_error", "dataset.workers"),
    *("dataset.split", "dataset.strict", "dataset.cache_gb"),
    *("train.microbatch", "train.remat", "train.skip_nonfinite"),
    *("eval.batch_size", "eval.save_logits"),
    *("checkpoint.every_steps", "checkpoint.every_minutes", "checkpoint.keep"),
)
BOUND = (
    *("method", "init_from", "dataset.name", "dataset.classes"),
    *("train.average_mean", "train.average_deviation", "train.keep"),
    *(
        key
        for key in KEYS
        if key.startswith(("text_prompt.", "visual_prompt.", "cavpt.", "weights.", "classifier."))
        and key != "weights.dropout"
    ),
)
UNBOUND = tuple(key for key in KEYS if key not in BOUND)

# The section of the settings of each part in the towers.
SECTION_OF = {
    TEXT: "text_prompt",
    VISUAL: "visual_prompt",
    CLASS_AWARE: "cavpt",
    WEIGHTS: "weights",
}


def method_config(
    method: str, dataset: str = common.DEFAULT_DATASET, protocol: str = ""
) -> ConfigDict:
    """Return the published configuration of a method on a dataset, see `common.on_dataset`.

    method is in `dpt_jax.methods.ROWS`; the linear probe takes zero-shot CLIP's.
    """
    name = method if method in METHODS else ZERO_SHOT
    module = importlib.import_module(f"dpt_jax.configs.{name}")
    config: ConfigDict = module.get_config(f"{dataset}:{protocol}" if protocol else dataset)
    return config


def validate(config: ConfigDict) -> None:
    """Raise UserError, naming the key, if a value is impossible or two contradict each other."""
    values = flat(config.to_dict())
    for key, value in values.items():
        _check_value(key, value)
    for key in ("dataset.template", "loss.template"):
        for text in values[key].split("|") if values[key] or key == "dataset.template" else ():
            if text.count("{}") != 1 or text.count("{") + text.count("}") != 2:
                raise UserError(f"{key}: {text.strip()!r} must have one {{}}, for the class name.")
    _check_conflicts(config, values)


def _check_value(key: str, value: Value) -> None:
    """Raise UserError if the value of a key is impossible, whatever the others are."""
    if isinstance(value, str):
        if not can_be_shown(value):
            raise UserError(f"{key}: {value!r} has a character that cannot be displayed.")
        if value not in CHOICES.get(key, (value,)):
            raise UserError(f"{key}: {value!r} is not one of {', '.join(CHOICES[key])}.")
        return
    if not math.isfinite(value) or abs(value) >= LARGEST:
        raise UserError(f"{key} is {value}: give a number below 2³¹.")
    if value == 0 and key in COUNT_OR_ALL:
        raise UserError(f"{key} is 0: give a positive number, or -1 for all.")
    if value < (least := AT_LEAST.get(key, 0)):
        without = "; to leave a part out, choose a method without it" if least == 1 else ""
        raise UserError(f"{key} is {value}: it must be at least {least}{without}.")


def _check_conflicts(config: ConfigDict, values: Mapping[str, Value]) -> None:
    """Raise UserError if keys contradict each other or the parts of the method."""
    data, classifier, weights = config.dataset, config.classifier, config.weights
    method = METHODS[config.method]
    parts, letters, learns_texts = method.parts, weights.matrices, False
    epochs, least = config.train.epochs, 0 if CLASSIFIER in parts and config.init_from else 1
    takes = " or ".join(map(repr, method.classifiers))
    not_letters = not letters or len(set(letters)) < len(letters) or set(letters) - set("qkvo")
    for is_wrong, sentence in (
        (epochs < least, f"train.epochs is {epochs}: it must be at least {least}."),
        (
            not 0 < data.test_fraction <= 1,
            f"dataset.test_fraction is {data.test_fraction}: it must be above 0 and at most 1.",
        ),
        (
            classifier.name not in method.classifiers,
            f"classifier.name is {classifier.name!r}, but method={method.name} takes {takes}.",
        ),
        (not_letters, f"weights.matrices: {letters!r} must be some of the letters q, k, v and o."),
        (weights.dropout >= 1, f"weights.dropout is {weights.dropout}: it must be below 1."),
    ):
        if is_wrong:
            raise UserError(sentence)
    if WEIGHTS in parts:
        layer_range(weights, "image_layers")
        learns_texts = layer_range(weights, "text_layers") is not None
    described = parse_descriptions(data.descriptions).values() if data.descriptions else ()
    bundled, folder = data.name in common.EMBEDDED, data.source == "folder"
    drops = weights.kind == prompts.LORA and weights.dropout > 0
    facts = {
        "a bundled dataset": bundled and folder,
        "a dataset with a split of its own": bundled or not folder,
        "a method with a classifier": CLASSIFIER in parts,
        "a method without settings to choose": not (
            classifier.name and CLASSIFIERS[classifier.name].grid
        ),
        "a method without a text prompt": TEXT not in parts,
        "a method without a visual prompt": VISUAL not in parts,
        "a method with a frozen image tower": not method.visual,
        "a method without learned parts": not parts,
        "dropout of learned weights": WEIGHTS in parts and drops,
        "several texts a class (dataset.template)": len(templates(config)) > 1 and not described,
        "several texts a class (dataset.descriptions)": any(len(own) > 1 for own in described),
        "a learned text tower": learns_texts and TEXT not in parts,
    }

    def holds(name: str) -> bool:
        if name in facts:
            return bool(facts[name])
        key, is_one, value = name.partition("=")
        return str(values[key]) == value if is_one else bool(values[key])

    for setting, other in EXCLUSIVE:
        if all([holds(setting), holds(other)]):  # both are looked up, so no row can be misspelt
            raise UserError(
                f"{setting} cannot be used with {other} (method={method.name}, dataset.name="
                f"{data.name}): change one of the two; `dpt-jax settings` explains the keys."
            )


class Given(NamedTuple):
    """The configuration of a command line."""

    file: str | None  # value of --config
    config: ConfigDict  # with the overrides; not validated
    overrides: dict[str, Value]

    @property
    def dataset_named(self) -> bool:
        """Whether --config names a dataset."""
        return self.file is not None and ":" in self.file


def from_command_line(
    arguments: Sequence[str], of_methods: bool = False
) -> tuple[Given, list[str]]:
    """Return the configuration of a command line, and the other arguments.

    of_methods: whether --config.METHOD.KEY=VALUE is allowed too; it becomes the override
    METHOD.KEY.
    """
    file: str | None = None
    others: list[str] = []
    overrides: dict[str, Value] = {}
    left = iter(arguments)
    for argument in left:
        if argument.startswith("-config"):  # which absl takes too
            argument = f"-{argument}"
        flag, given, value = argument.partition("=")
        key = flag.lstrip("-").removeprefix("config.")
        method, _, own = key.partition(".")
        if argument == "--":
            others += [argument, *left]
        elif flag == "--config":
            file = value if given else next(left, "")
        elif not flag.startswith("--config."):
            others.append(argument)
        elif of_methods and method in METHODS:
            of_one, _ = from_command_line([f"--config={method}", f"--config.{own}={value}"])
            overrides |= {f"{method}.{name}": one for name, one in of_one.overrides.items()}
        elif key not in KEYS:
            raise UserError(f"{flag}: there is no such key{nearest(key)}")
        else:
            others.append(argument)
    name = _with_dataset(common.get_config().method if file is None else file, others)
    # The flag of the file goes first, since it defines the flags of its keys.
    argv = ["", f"--config={name}", *others]
    values = flags.FlagValues()
    values.set_gnu_getopt(True)
    sys.modules.pop("config_config", None)  # config_flags' name for the file, whatever its path
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        rest = values(argv, known_only=True)[1:]
    except (flags.Error, AttributeError, LookupError, TypeError, ValueError) as reason:
        *_, cause = (line.strip() for line in str(reason).splitlines() if line.strip())
        cause = cause.removeprefix("flag ").rstrip(".")
        where = "" if cause.startswith("--config.") else f"--config={name}: "
        raise UserError(f"{where}{cause}.") from reason
    config: Any = values["config"].value
    _check_keys(config, name)
    overrides |= config_flags.get_override_values(values["config"])
    if config.dataset.descriptions:
        config.dataset.descriptions = read_descriptions(config.dataset.descriptions)
        if (key := "dataset.descriptions") in overrides:
            overrides[key] = config.dataset.descriptions
    return Given(file, config, overrides), rest


def _with_dataset(name: str, arguments: Sequence[str]) -> str:
    """Return PATH[:DATASET[:PROTOCOL]] of a configuration, named by its path or by its method.

    A method's own file without a dataset gets the one of dataset.name, or "folder", the user's own
    images, if `arguments` only have a dataset.root.
    """
    file, colon, arg = name.partition(":")
    published = pathlib.Path(common.__file__).resolve().parent
    path = published / f"{file}.py" if file in METHODS else pathlib.Path(file).expanduser()
    if not path.is_file():
        raise UserError(
            f"--config: {file or 'its value'} is not a file: give a path, or the name of a method "
            f"({', '.join(METHODS)})."
        )
    keys = "\n".join(arguments)
    given = dict(re.findall(r"^--?config\.dataset\.(name|root)[=\n](.+)$", keys, re.M))
    if given and not colon and path.resolve().parent == published:
        colon, arg = ":", given.get("name", "folder")
    return f"{path}{colon}{arg}"


def _check_keys(config: object, file: str) -> None:
    """Raise UserError if a configuration file does not have exactly the keys of common.py."""
    found = flat(config.to_dict()) if isinstance(config, ConfigDict) else {}
    for key in [key for key in (*found, *KEYS) if (key in KEYS) != (key in found)]:
        what = "is missing." if key in KEYS else f"is not a key{nearest(key)}"
        raise UserError(
            f"{file}: {key} {what} Its get_config begins with `config = common.get_config()` of "
            "dpt_jax.configs, and returns it."
        )


def keyword_config(method: str, keywords: Mapping[str, Any]) -> tuple[ConfigDict, dict[str, Any]]:
    """Return a method's configuration with the values of Python keywords, and these values by key.

    A keyword is a key with __ or . between its section and its name. The section may be left out
    if it is train or dataset, or if no other section of the method has such a name.
    """
    if method not in METHODS:
        raise UserError(f"method: {method!r} is not one of {', '.join(METHODS)}.")
    used = [key for key in KEYS if not key.startswith(sections_without_use(method))]
    values: dict[str, Any] = {}
    for keyword, value in keywords.items():
        name = keyword.replace("__", ".")
        # Keys of train and dataset come first. The method need not use a full key.
        keys = [name] if name in KEYS else [key for key in used if key.endswith(f".{name}")]
        first = [key for key in (f"train.{name}", f"dataset.{name}") if key in keys]
        keys = first[:1] or keys
        if not keys:
            raise UserError(f"{keyword} is not a setting of {method}{nearest(name, used)}")
        if len(keys) > 1 or keys[0] in values:
            also = [key.replace(".", "__") for key in keys]
            raise UserError(f"{keyword}: give {' or '.join(also)}, and only once.")
        value = os.fspath(value) if isinstance(value, os.PathLike) else value
        values[keys[0]] = value.item() if isinstance(value, np.generic) else value
    config = method_config(method, values.get("dataset.name", "folder"))
    if isinstance(file := values.get("dataset.descriptions"), str):
        values["dataset.descriptions"] = read_descriptions(file)
    for key, value in values.items():
        try:
            if value is None:  # which ConfigDict takes for any type
                raise TypeError
            config.update_from_flattened_dict({key: value})
        except (TypeError, ValueError) as reason:
            raise UserError(f"{key} cannot be {value!r}.") from reason
    return config, values


def layer_range(weights: ConfigDict, key: str) -> prompts.Layers:
    """Return the layers that a key of the weights names: all, none, or a range such as 1-4."""
    value = weights[key]
    if value in ("all", "none"):
        return (1, 0) if value == "all" else None
    found = re.fullmatch(r"(\d+)-(\d+)", value)
    first, last = map(int, found.groups()) if found else (0, 0)
    if not 1 <= first <= last:
        raise UserError(f"weights.{key}: {value!r} is not all, none, or a range such as 1-4.")
    return first, last


def sections_without_use(method: str) -> tuple[str, ...]:
    """Return prefixes of the keys that do not affect a method: those of parts that it lacks."""
    parts, sections = METHODS[method].parts, {**SECTION_OF, CLASSIFIER: "classifier"}
    absent = [f"{section}." for part, section in sections.items() if part not in parts]
    if METHODS[method].in_towers:
        return tuple(absent)
    # Two settings of the training also define a classifier's views.
    kept = ("train.augment", "train.shift") if CLASSIFIER in parts else ()
    train = (key for key in KEYS if key.startswith("train.") and key not in kept)
    return (*absent, "loss.", *train)


def prompt_config(
    config: ConfigDict, classes: int, layers: int, init_tokens: int = 0
) -> prompts.PromptConfig:
    """Return the sizes of the learned parts of a validated configuration.

    Args:
      config: The configuration.
      classes: Number of classes.
      layers: Layers of the image tower.
      init_tokens: Tokens of text_prompt.init, 0 if there are none or they are not known yet. They
        set the length of the context, unless text_prompt.fixed_words keeps some of them fixed.
    """
    text, visual, cavpt, loss = config.text_prompt, config.visual_prompt, config.cavpt, config.loss
    parts, weights = METHODS[config.method].parts, config.weights
    length = init_tokens if init_tokens and not text.fixed_words else text.length
    if TEXT in parts and 0 < init_tokens < length:
        raise UserError(
            f"text_prompt.length is {length}, but only the first {init_tokens} tokens of "
            f"text_prompt.init={text.init!r} can be learned (text_prompt.fixed_words): reduce "
            "the length, or give no words."
        )
    first = cavpt.first_layer + layers + 1 if cavpt.first_layer < 0 else cavpt.first_layer
    learned_weights = prompts.Weights()
    if WEIGHTS in parts:
        learned_weights = prompts.Weights(
            *(weights.kind, weights.rank, weights.alpha, weights.matrices),
            dropout=weights.dropout if weights.kind == prompts.LORA else 0.0,
            vision=layer_range(weights, "image_layers"),
            text=layer_range(weights, "text_layers"),
        )
    return prompts.PromptConfig(
        classes=classes,
        text_length=length if TEXT in parts else 0,
        text_depth=text.depth,
        class_specific=text.class_specific,
        conditioned=text.conditioned,
        visual_length=visual.length if VISUAL in parts else 0,
        visual_depth=max(visual.depth, 0),
        ln_pre=visual.ln_pre,
        coupled=visual.coupled,
        top_k=cavpt.top_k if CLASS_AWARE in parts else 0,
        first_layer=first if CLASS_AWARE in parts else 0,
        consistency=prompts.Consistency(
            text=loss.text_consistency,
            text_distance=loss.text_distance,
            image=loss.image_consistency,
            logits=loss.logit_consistency,
        ),
        weights=learned_weights,
        classifier=config.classifier.name,
        method=config.method,
    )


def templates(config: ConfigDict, key: str = "dataset.template") -> list[str]:
    """Return the templates of a key; the features of several are averaged."""
    section, name = key.split(".")
    return [text.strip() for text in config[section][name].split("|")]


def shots_in_words(shots: int) -> str:
    """Return "1 shot", "8 shots", "all images" for -1, "no training" for zero-shot's 0."""
    return {-1: "all images", 0: "no training", 1: "1 shot"}.get(shots, f"{shots} shots")


def nearest(key: str, keys: Collection[str] = tuple(KEYS)) -> str:
    """Return "; did you mean KEY?", or "." if none of the keys in any section is similar."""
    by_name = {name.rpartition(".")[2]: name for name in keys}
    similar = difflib.get_close_matches(key.rpartition(".")[2], by_name, 1, 0.7)
    found = difflib.get_close_matches(key, keys, 1, 0.7) or [by_name[name] for name in similar]
    return f"; did you mean {found[0]}?" if found else "."
