"""Trained prompts on disk: the checkpoints of a run, and prompt files.

A checkpoint has prompts, their record and optimizer state, but not CLIP's weights. A prompt file
is safetensors with a JSON header, and replaces a workdir. Its tensors are named by their path in
the tree ("cavpt.query.kernel").
"""

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from dpt_jax import distributed
from dpt_jax.clip.blocks import PyTree
from dpt_jax.errors import UserError
from dpt_jax.io import (
    as_path,
    entries,
    file_system,
    is_remote,
    reading,
    short,
    without_wildcards,
    write_whole,
)
from dpt_jax.logging import say
from dpt_jax.prompts import Prompts

FOLDER = "checkpoints"
DAMAGED = "damaged"
DIGESTS = "digests"
META = ("meta", "metadata")  # the file of a checkpoint's record
COMMITTED = "commit_success.txt"  # in a bucket, which has no rename, Orbax writes it last

SUFFIX = ".safetensors"
FORMAT = "dpt_jax prompts, version 1"


class Saved(NamedTuple):
    """Prompts of a checkpoint or a prompt file, host arrays."""

    step: int  # of the training
    prompts: Prompts
    meta: dict[str, Any]  # the record of the training
    digest: str = ""  # of the prompts
    training: PyTree = None  # optimizer state and running totals, if loaded


def digest(tree: PyTree) -> str:
    """Return the SHA-256 of a tree of host arrays: types, shapes and bytes, in the tree's order."""
    found = hashlib.sha256()
    for leaf in map(np.asarray, jax.tree.leaves(tree)):
        found.update(f"{leaf.dtype} {leaf.shape} ".encode())
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()


def digest_of_json(values: Any) -> str:
    """Return the SHA-256 of values as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


class Checkpoints(contextlib.ExitStack):
    """The newest checkpoints of a workdir, written in the background.

    Each has the items `prompts` and `meta`, and in a training run `training`. `meta` has a digest
    of every item. Hosts save and restore together, on a shared file system or in a bucket.
    """

    def __init__(self, workdir: epath.PathLike, keep: int = 2) -> None:
        """Make the folder of checkpoints.  keep: how many to keep."""
        super().__init__()
        self.directory = as_path(workdir) / FOLDER
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=False)
        with reading(self.directory, "a folder of checkpoints"):
            if distributed.is_first() and not is_remote(self.directory):
                self.directory.mkdir(parents=True, exist_ok=True)
            root = self.enter_context(without_wildcards(self.directory))
            manager = ocp.CheckpointManager(epath.Path(root), options=options)
            self._manager = self.enter_context(manager)

    def save(
        self, step: int, prompts: Prompts, meta: dict[str, Any], training: PyTree = None
    ) -> None:
        """Start writing host arrays, which must not change afterwards, as the newest checkpoint.

        Others of this and later steps are removed, such as a classifier's in an extended run.
        """
        trees = {"prompts": prompts} | ({} if training is None else {"training": training})
        digests = {name: digest(tree) for name, tree in trees.items()}
        digests["meta"] = digest_of_json(meta)
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        items["meta"] = ocp.args.JsonSave({**meta, DIGESTS: digests})
        with self._writing():
            if step in self._manager.all_steps():
                self._manager.delete(step)
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
            if later := [other for other in self._manager.all_steps() if other > step]:
                # The run may have no other checkpoint until this one is whole.
                self._manager.wait_until_finished()
                for other in later:
                    self._manager.delete(other)

    def wait(self) -> None:
        """Wait until everything is written."""
        with self._writing():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as reason:  # Orbax, TensorStore and gcsfs have types of their own
            whole = steps_of(self.directory)
            last = f"the last intact one is from step {whole[0]}" if whole else "there is none yet"
            raise UserError(
                f"{self.directory}: a checkpoint cannot be written ({short(reason)}); {last}. Free "
                "some space, and run the same command again."
            ) from reason

    def resume(self) -> Saved | None:
        """Return the newest intact checkpoint; None in a new run.

        Damaged ones are moved to WORKDIR/damaged, so that the run can write them again.
        """
        steps = steps_of(self.directory)
        distributed.check_same(lambda: {"list of checkpoints (workdir)": repr(steps)})
        saved, damaged = _restore_newest(self.directory, steps, training=True)
        if saved and saved.training is None:
            raise UserError(
                f"{self.directory} has prompts without a training state, so it cannot be resumed: "
                "start a run from them with --config.init_from and another --workdir."
            )
        for step, reason in damaged.items() if distributed.is_first() else ():
            there, aside = self.directory / str(step), self.directory.parent / DAMAGED / str(step)
            while aside.exists():
                aside = aside.with_name(f"{aside.name}.again")
            aside.parent.mkdir(parents=True, exist_ok=True)
            file_system(there).mv(os.fspath(there), os.fspath(aside), recursive=True)
            say(f"{reason}: moved to {aside}; resuming from an earlier one.", file=sys.stderr)
        if damaged:
            distributed.on_all_hosts(True)  # no host lists the folder before they are moved
            self._manager.reload()
        return saved


def steps_of(folder: epath.Path) -> list[int]:
    """Return the steps with a complete checkpoint in a folder, newest first."""
    found = entries(folder) if folder.is_dir() else ()
    steps = [int(name) for name, is_folder in found if is_folder and name.isdecimal()]
    if is_remote(folder):
        steps = [step for step in steps if (folder / str(step) / COMMITTED).exists()]
    return sorted(steps, reverse=True)


def _restore_newest(
    folder: epath.Path, steps: list[int], training: bool
) -> tuple[Saved | None, dict[int, str]]:
    """Return the newest intact checkpoint on all hosts, and why newer ones are damaged.

    steps: those with a checkpoint, newest first. Raise UserError if none is intact, or if one
    cannot be read for a reason other than damage.
    """
    damaged: dict[int, str] = {}
    for step in steps:
        reason = ""
        try:
            saved = restore(folder / str(step), training)
        except UserError as error:
            is_lost = isinstance(error.__cause__, FileNotFoundError)
            if isinstance(error.__cause__, (OSError, MemoryError)) and not is_lost:
                raise
            reason = str(error).removesuffix(".")
        if distributed.on_all_hosts(not reason):
            return saved, damaged
        damaged[step] = reason or f"another host cannot read {folder / str(step)}"
    if damaged:
        raise UserError(
            f"none of the {len(damaged)} checkpoints in {folder} is intact: remove that folder to "
            f"train again from step 0. {max(damaged.items())[1]}."
        )
    return None, damaged


def restore(folder: epath.Path, training: bool = True) -> Saved:
    """Return a checkpoint, with its training state if asked for.

    Raise UserError if it cannot be read, or is not what was written.
    """
    # Orbax and TensorStore have errors of their own.
    with reading(folder, "a checkpoint"), _refusal_first(folder):
        meta = json.loads(folder.joinpath(*META).read_bytes())
        digests = meta.pop(DIGESTS)
        if not training:
            digests.pop("training", None)
        own, trees = {"meta": digest_of_json(meta)}, {}
        with without_wildcards(folder) as opened, ocp.StandardCheckpointer() as reader:
            for name in sorted(digests.keys() - own):
                trees[name] = jax.tree.map(np.asarray, reader.restore(epath.Path(opened) / name))
                own[name] = digest(trees[name])
        if own != digests:
            raise ValueError("the digest of an item does not match")
    return Saved(int(folder.name), trees["prompts"], meta, own["prompts"], trees.get("training"))


@contextlib.contextmanager
def _refusal_first(folder: epath.Path) -> Iterator[None]:
    """If the body fails and the system refuses to read a file, raise that: it may be intact."""

    def read_all(folder: epath.Path) -> None:
        for name, is_folder in entries(folder):
            if is_folder:
                read_all(folder / name)
            else:
                (folder / name).read_bytes()

    try:
        yield
    except Exception:
        read_all(folder)
        raise


def load_newest(source: epath.PathLike) -> Saved:
    """Return the newest intact prompts of a workdir, or those of a prompt file."""
    source = as_path(source)
    if is_prompt_file(source):
        return _read_prompt_file(source)
    folder = source / FOLDER
    saved, damaged = _restore_newest(folder, steps_of(folder), training=False)
    for reason in damaged.values():
        say(f"{reason}: using the previous one.", file=sys.stderr)
    if saved is None:
        raise UserError(f"{source} has no checkpoint: train there, or name another --workdir.")
    return saved


def newest(source: epath.Path) -> Saved | None:
    """Return the newest readable record with its step and digest; None if there is none."""
    if is_prompt_file(source):
        return _read_prompt_file(source) if source.is_file() else None
    for step in steps_of(source / FOLDER):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            meta = json.loads((source / FOLDER / str(step)).joinpath(*META).read_bytes())
            return Saved(step, {}, meta, str(meta[DIGESTS]["prompts"]))
    return None


def is_prompt_file(source: epath.Path) -> bool:
    """Return whether a path names a prompt file, by its suffix, and not a workdir."""
    return source.suffix == SUFFIX and not source.is_dir()


def has_format(source: epath.Path) -> bool:
    """Return whether a path is a prompt file, by its header, and not a CLIP's weights."""
    return is_prompt_file(source) and source.is_file() and _header(source).get("format") == FORMAT


def folder_of(source: epath.Path) -> epath.Path:
    """Return the folder for outputs: a workdir, or for a prompt file its name without suffix."""
    return source.with_suffix("") if is_prompt_file(source) else source


def write_prompt_file(
    file: epath.Path,
    saved: Saved,
    settings: Mapping[str, Any],
    results: Mapping[str, Any] | None,
) -> None:
    """Write prompts with their record, the configuration of their run, and its results.json.

    Paths of data and of other runs are left out. The name of CLIP's weights is kept, so that they
    can be found again.
    """
    import safetensors.numpy

    name = as_path(settings["init_from"]).name if settings["init_from"] else ""
    dataset = {**settings["dataset"], "root": "", "split": ""}
    settings = {**settings, "init_from": name, "dataset": dataset}
    header = {
        **{"settings": settings, "training": saved.meta, "step": saved.step},
        # The other entries are for people.
        "method": saved.meta["method"],
        "backbone": settings["clip"]["weights"],
        "template": settings["dataset"]["template"],
        "classnames": saved.meta.get("classnames"),
        "results": results and {k: x for k, x in results.items() if not isinstance(x, dict)},
    }
    texts = {key: json.dumps(value, ensure_ascii=False) for key, value in header.items()}
    tensors = flax.traverse_util.flatten_dict(saved.prompts, sep=".")
    tensors = jax.tree.map(lambda x: np.array(x, order="C"), tensors)
    write_whole(file, safetensors.numpy.save(tensors, {"format": FORMAT, **texts}))


def read_header(file: epath.Path) -> dict[str, Any]:
    """Return the entries of a prompt file's header, see `write_prompt_file`."""
    header = _header(file)
    with reading(file, "a prompt file"):
        if header.pop("format", None) != FORMAT:
            raise ValueError(f"the format in its header is not {FORMAT!r}")
        found = {key: json.loads(value) for key, value in header.items()}
        for key, kind in (("settings", dict), ("training", dict), ("step", int)):
            if not isinstance(found[key], kind):
                raise TypeError(f"{key} in its header is not what `convert export` writes")
    return found


def _read_prompt_file(file: epath.Path) -> Saved:
    import safetensors.numpy

    header = read_header(file)
    with reading(file, "a prompt file"):
        tensors = safetensors.numpy.load(file.read_bytes())
    prompts = flax.traverse_util.unflatten_dict(tensors, sep=".")
    return Saved(header["step"], prompts, header["training"], digest(prompts))


def _header(file: epath.Path) -> dict[str, str]:
    with reading(file, "a .safetensors file"), file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        return json.loads(opened.read(size)).get("__metadata__", {})
