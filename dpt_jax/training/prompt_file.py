"""Trained prompts as one small file: safetensors with a JSON header.

Tensors are named by their path in the tree ("cavpt.query.kernel"). Of the header's entries, method,
backbone, template, classnames and results are for people; settings, training and step are for the
commands, which read the file in place of a workdir.
"""

import json
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import numpy as np
from etils import epath

from dpt_jax.errors import UserError
from dpt_jax.io import as_path, reading, write_whole
from dpt_jax.prompts import Prompts

SUFFIX = ".safetensors"
FORMAT = "dpt_jax prompts, version 1"
# Results in the header; the rest of results.json is long and only about the test images.
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

PARTS = ("text", "meta_net", "visual", "coupling", "cavpt", "weights", "classifier")
# Entries of the header.
TYPES: dict[str, Any] = {
    **{"method": str, "backbone": str, "template": str, "classnames": list | None},
    **{"results": dict | None, "settings": dict, "training": dict, "step": int},
}


def is_prompt_file(source: epath.Path) -> bool:
    """Return whether a path names a prompt file, by its suffix, and not a workdir."""
    return source.suffix == SUFFIX and not source.is_dir()


def has_format(source: epath.Path) -> bool:
    """Return whether a path is a prompt file, by its header, and not a CLIP's weights."""
    if not is_prompt_file(source) or not source.is_file():
        return False
    with reading(source, "a .safetensors file"):
        return _header(source).get("format") == FORMAT


def _header(file: epath.Path) -> dict[str, str]:
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        return json.loads(opened.read(size)).get("__metadata__", {})


def folder_of(source: epath.Path) -> epath.Path:
    """Return the folder for the outputs of a workdir or prompt file.

    It is the workdir, or for a prompt file a folder with the file's name.
    """
    return source.with_suffix("") if is_prompt_file(source) else source


def write(
    file: epath.Path,
    step: int,
    prompts: Prompts,
    training: Mapping[str, Any],
    settings: Mapping[str, Any],
    results: Mapping[str, Any] | None,
) -> None:
    """Write prompts (a tree of host arrays) with their settings, record and results.

    training: their record. settings: the configuration of the run. results: its results.json.
    Paths of data and of other runs are left out. The name of CLIP's weights is kept, so that they
    can be found again.
    """
    import safetensors.numpy

    name = as_path(settings["init_from"]).name if settings["init_from"] else ""
    settings = {**settings, "init_from": name, "dataset": {**settings["dataset"], "root": ""}}
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
    content = safetensors.numpy.save(
        jax.tree.map(lambda x: np.array(x, order="C"), tensors), header
    )
    write_whole(file, content)


def read_header(file: epath.Path) -> dict[str, Any]:
    """Return the header's entries, see `write`.

    Raises:
      UserError: if the file is missing, damaged or not a prompt file.
    """
    if not file.is_file():
        raise UserError(
            f"{file} does not exist: give a workdir, or a prompt file of `dpt-jax convert export`."
        )
    with reading(file, "a prompt file"):
        header = _header(file)
        if header.pop("format", None) != FORMAT:
            raise ValueError(f"the format in its header is not {FORMAT!r}")
        entries = {key: json.loads(value) for key, value in header.items()}
        for key, kind in TYPES.items():
            if not isinstance(entries[key], kind):
                raise TypeError(f"{key} in its header is not what `convert export` writes")
    return entries


def read(file: epath.Path) -> tuple[int, Prompts, dict[str, Any]]:
    """Return step, prompts and training, see `write`.  Raise UserError, see `read_header`."""
    import safetensors.numpy

    header = read_header(file)
    with reading(file, "a prompt file"):
        loaded = safetensors.numpy.load(file.read_bytes())
        tensors = flax.traverse_util.unflatten_dict(loaded, sep=".")
        if unknown := sorted(set(tensors) - set(PARTS)):
            raise ValueError(f"its tensors {unknown[0]!r} are not a known part")
    return header["step"], tensors, header["training"]
