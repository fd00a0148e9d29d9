"""A trained prompt as one small file that can be handed on: safetensors with a header in JSON.

The tensors are the prompts by their place in the tree ("cavpt.query.kernel"). The header's entries are method,
backbone, template, classnames and results, for whoever opens the file, and settings, training and step, which make
it a run again: it stands wherever a workdir does that is only read.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from dpt_jax.errors import UserError

SUFFIX = ".safetensors"
FORMAT = "dpt_jax prompts, version 1"
# What the header says of a run's results; the rest of results.json is long and of the test images alone.
RESULTS = ("dataset", "classes", "shots", "seed", "split", "n", "accuracy", "macro_f1", "zero_shot_accuracy")


def is_prompt_file(source: pathlib.Path) -> bool:
    """Whether a path is that of a prompt file, by its name, and not of a workdir."""
    return source.suffix == SUFFIX and not source.is_dir()


def folder_of(source: pathlib.Path) -> pathlib.Path:
    """Where to write what is made of a workdir or prompt file: there, or in a folder of the file's name."""
    return source.with_suffix("") if is_prompt_file(source) else source


def write(
    file: pathlib.Path,
    step: int,
    prompts: Any,
    training: Mapping[str, Any],
    settings: Mapping[str, Any],
    results: Mapping[str, Any] | None,
) -> None:
    """Writes prompts (a tree of host arrays) with all that is known of them.

    training: what their checkpoint says of it. settings: the configuration of the run. results: its results.json.
    The folder of the data stays out: it is a path on this machine.
    """
    import safetensors.numpy

    settings = {**settings, "dataset": {**settings["dataset"], "root": ""}}
    entries = {
        "method": training["method"],
        "backbone": settings["clip"]["weights"],
        "template": settings["dataset"]["template"],
        "classnames": training.get("classnames"),
        "results": results and {key: results[key] for key in RESULTS},
        "settings": settings,
        "training": dict(training),
        "step": step,
    }
    header = {"format": FORMAT} | {key: json.dumps(value, ensure_ascii=False) for key, value in entries.items()}
    tensors = flax.traverse_util.flatten_dict(prompts, sep=".")
    # In one piece: a file that is there is whole.
    written = file.with_name(f"{file.name}.tmp")
    try:
        written.write_bytes(safetensors.numpy.save(jax.tree.map(np.ascontiguousarray, tensors), header))
        written.replace(file)
    except OSError as reason:
        raise UserError(f"{file} cannot be written ({reason}).") from reason


def read_header(file: pathlib.Path) -> dict[str, Any]:
    """The header's entries.  Raises UserError where the file is missing, damaged or not of prompts."""
    import safetensors

    if not file.is_file():
        raise UserError(f"{file} is not there: give a prompt file of `python -m dpt_jax.convert export`, or a workdir.")
    try:
        with safetensors.safe_open(file, "numpy") as opened:
            header = opened.metadata() or {}
    except (safetensors.SafetensorError, OSError) as reason:
        raise UserError(f"{file} cannot be read ({reason}); it is damaged or no safetensors file.") from reason
    if header.get("format") != FORMAT:
        raise UserError(
            f"{file} is no file of prompts (its header says {header.get('format')!r}, not {FORMAT!r}): "
            "write one with `python -m dpt_jax.convert export WORKDIR FILE`."
        )
    try:
        entries = {key: json.loads(value) for key, value in header.items() if key != "format"}
    except ValueError as reason:
        raise UserError(f"{file}: its header is damaged ({reason}).") from reason
    if missing := [key for key in ("settings", "step", "training") if key not in entries]:
        raise UserError(f"{file}: its header lacks {missing[0]}.")
    return entries


def read(file: pathlib.Path) -> tuple[int, Any, dict[str, Any]]:
    """(step, prompts, training), see `write`.  Raises UserError, see `read_header`."""
    import safetensors.numpy

    header = read_header(file)
    tensors = safetensors.numpy.load_file(file)
    return header["step"], flax.traverse_util.unflatten_dict(tensors, sep="."), header["training"]
