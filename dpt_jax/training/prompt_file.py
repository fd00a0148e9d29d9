"""A trained prompt as one small file that can be handed on: safetensors with a header in JSON.

The tensors are the prompts by their place in the tree ("cavpt.query.kernel"). The header's entries
are method, backbone, template, classnames and results, for a reader who opens the file, and
settings, training and step, which make it a run again. A command that reads a run takes the file
instead of a workdir.
"""

import json
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import numpy as np
from etils import epath

from dpt_jax.errors import UserError
from dpt_jax.io import on_this_disk, write_whole

SUFFIX = ".safetensors"
FORMAT = "dpt_jax prompts, version 1"
# What the header says of a run's results; the rest of results.json is long and of the test images
# alone.
RESULTS = (
    "dataset",
    "classes",
    "shots",
    "seed",
    "split",
    "n",
    "accuracy",
    "macro_f1",
    "zero_shot_accuracy",
)


def is_prompt_file(source: epath.Path) -> bool:
    """Return whether a path is a prompt file's, by its name, and not a workdir's."""
    return source.suffix == SUFFIX and not source.is_dir()


def folder_of(source: epath.Path) -> epath.Path:
    """Return where to write what is made of a workdir or prompt file.

    Of a workdir that is the workdir; of a prompt file, a folder of the file's name.
    """
    return source.with_suffix("") if is_prompt_file(source) else source


def write(
    file: epath.Path,
    step: int,
    prompts: Any,
    training: Mapping[str, Any],
    settings: Mapping[str, Any],
    results: Mapping[str, Any] | None,
) -> None:
    """Write prompts (a tree of host arrays) with all that is known of them.

    training: what their checkpoint says of it. settings: the configuration of the run. results: its
    results.json. Folders of data and of other runs stay out. The name of CLIP's weights stays in,
    since they must be found again.
    """
    import safetensors.numpy

    settings = {**settings, "init_from": "", "dataset": {**settings["dataset"], "root": ""}}
    entries = {
        "method": training["method"],
        "backbone": settings["clip"]["weights"],
        "template": settings["dataset"]["template"],
        "classnames": training.get("classnames"),
        "results": results and {key: results.get(key) for key in RESULTS},
        "settings": settings,
        "training": dict(training),
        "step": step,
    }
    header = {"format": FORMAT} | {
        key: json.dumps(value, ensure_ascii=False) for key, value in entries.items()
    }
    tensors = flax.traverse_util.flatten_dict(prompts, sep=".")
    content = safetensors.numpy.save(jax.tree.map(np.ascontiguousarray, tensors), header)
    write_whole(file, content)


def read_header(file: epath.Path) -> dict[str, Any]:
    """Return the header's entries.

    Raise UserError where the file is missing, damaged or not of prompts.
    """
    import safetensors

    if not file.is_file():
        raise UserError(
            f"{file} is not there: give a prompt file of `dpt-jax convert export`, or a workdir."
        )
    try:
        with on_this_disk(file) as local, safetensors.safe_open(local, "numpy") as opened:
            header = opened.metadata() or {}
    except (safetensors.SafetensorError, OSError) as reason:
        raise UserError(
            f"{file} cannot be read ({reason}); it is damaged or no safetensors file."
        ) from reason
    if header.get("format") != FORMAT:
        raise UserError(
            f"{file} is no file of prompts (its header says {header.get('format')!r}, not "
            f"{FORMAT!r}): "
            "write one with `dpt-jax convert export WORKDIR FILE`."
        )
    try:
        entries = {key: json.loads(value) for key, value in header.items() if key != "format"}
    except (ValueError, RecursionError) as reason:
        raise UserError(f"{file}: its header is damaged ({reason}).") from reason
    _check(entries, file)
    return entries


ENTRIES = (
    *("method", "backbone", "template", "classnames", "results"),
    *("settings", "training", "step"),
)
PARTS = ("text", "meta_net", "visual", "coupling", "cavpt")


def _check(entries: Mapping[str, Any], file: epath.Path) -> None:
    """Raise UserError where an entry is missing, unknown or of another type."""
    if unknown := sorted(set(entries) - set(ENTRIES)):
        raise UserError(
            f"{file}: its header has an entry {unknown[0]!r}, which this version does not know; "
            "a newer one may have written it."
        )
    if missing := [key for key in ("settings", "step", "training") if key not in entries]:
        raise UserError(f"{file}: its header lacks {missing[0]}.")
    training = entries["training"]
    types: dict[str, Any] = {
        "settings": Mapping,
        "training": Mapping,
        "step": int,
        "results": Mapping | None,
    }
    wrong = [key for key, kind in types.items() if not isinstance(entries.get(key), kind)]
    if not wrong:
        types = {
            "method": str,
            "backbone": str | None,
            "classnames": list | None,
            "epoch": int | None,
            "data": Mapping | None,
            "train_list": str | None,
        }
        wrong = [
            f"training.{key}"
            for key, kind in types.items()
            if not isinstance(training.get(key), kind)
        ]
    names = [] if wrong else training.get("classnames")
    if (
        names is not None
        and not wrong
        and not (names and all(isinstance(name, str) and name for name in names))
    ):
        wrong = ["training.classnames"]
    if wrong:
        raise UserError(f"{file}: {wrong[0]} in its header is not what `convert export` writes.")


def read(file: epath.Path) -> tuple[int, Any, dict[str, Any]]:
    """Return step, prompts and training, see `write`.  Raise UserError, see `read_header`."""
    import safetensors.numpy

    header = read_header(file)
    try:
        loaded = safetensors.numpy.load(file.read_bytes())
        tensors = flax.traverse_util.unflatten_dict(loaded, sep=".")
    except (
        Exception
    ) as reason:  # names and types of tensors can be anything in a file from elsewhere
        raise UserError(f"{file}: its tensors are not those of prompts ({reason}).") from reason
    if unknown := sorted(set(tensors) - set(PARTS)):
        raise UserError(
            f"{file}: its tensors {unknown[0]!r} are of no prompt that this version knows."
        )
    return header["step"], tensors, header["training"]
