"""Weight files as flat dicts of host arrays, whatever wrote them.

PyTorch files are read with torch's weights_only unpickler and nothing else.
"""

import io
import os
import pathlib
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.serialization
import flax.traverse_util
import numpy as np
from etils import epath

from dpt_jax.clip.json_files import read_json, say_if_other
from dpt_jax.errors import UserError

Tensors = dict[str, np.ndarray]
INDEX = ".index.json"
SHARD = re.compile(r"-\d+-of-\d+\.[a-z]+$")
# What training writes beside the tensors: open_clip's, and the published code's framework.
_TRAINING_FIELDS = {"epoch", "name", "optimizer", "scaler", "scheduler", "val_result"}


def read_tensors(file: epath.Path) -> Tensors:
    """Return the tensors of a weight file, or of all files that an index names.

    Raise UserError for a file that is none, is damaged, or is one of several shards.
    """
    if file.name.endswith(INDEX):
        return _read_shards(file)
    if SHARD.search(file.name):
        raise UserError(
            f"{file} is one of several shards of a model: give their folder or their {INDEX} file."
        )
    return _read_one(file)


def _read_one(file: epath.Path) -> Tensors:
    readers: dict[str, Callable[[epath.Path], Tensors]] = {
        ".safetensors": _read_safetensors,
        ".msgpack": _read_msgpack,
        **dict.fromkeys((".bin", ".pt", ".pth"), lambda file: read_torch_file(file).tensors),
    }
    if file.suffix not in readers:
        raise UserError(
            f"{file} is not a weight file: its name should end in {', '.join(readers)}."
        )
    try:
        with file.open("rb") as opened:
            start = opened.read(100)
        if not start:
            raise UserError(f"{file} is empty: get it again.")
        say_if_other(file, start)
        return readers[file.suffix](file)
    except (UserError, MemoryError, ImportError):
        raise
    except Exception as reason:  # each format's library has its own types for a damaged file
        raise UserError(
            f"{file} cannot be read ({reason}); it is damaged or not what its name says."
        ) from reason


def _read_shards(index: epath.Path) -> Tensors:
    """Return the tensors of all shards, each from the file that the index names for it."""
    fields = read_json(index)
    places = fields.section("weight_map").values
    if not places:
        raise fields.error("weight_map", "an object with a file for each tensor")
    tensors: Tensors = {}
    shards: dict[str, list[str]] = {}
    for name, shard in places.items():
        if not isinstance(shard, str) or not shard or "/" in shard or "\\" in shard:
            raise UserError(f"{index}: weight_map.{name} is {shard!r}, which names no file.")
        shards.setdefault(shard, []).append(name)
    for shard, names in shards.items():
        if not (index.parent / shard).exists():
            raise UserError(f"{index} names {shard}, which is not there: the model is incomplete.")
        own = _read_one(index.parent / shard)
        for name in sorted({*own, *names}):
            if name not in own or name not in names:
                where = "lacks" if name not in own else "has"
                raise UserError(
                    f"{index.parent / shard} {where} tensor {name}, against what {index.name} says."
                )
        tensors |= own
    return tensors


def _read_safetensors(file: epath.Path) -> Tensors:
    import safetensors.numpy

    return safetensors.numpy.load_file(os.fspath(file))


def _read_msgpack(file: epath.Path) -> Tensors:
    """Return the tensors of a Flax checkpoint of transformers, as its PyTorch files have them.

    There a kernel is transposed, and scale and embedding are called weight.
    """
    tree = flax.serialization.msgpack_restore(file.read_bytes())
    tensors: Tensors = {}
    for name, value in flax.traverse_util.flatten_dict(tree, sep=".").items():
        value = np.asarray(value)
        stem, _, kind = name.rpartition(".")
        if kind == "kernel":
            value = value.T if value.ndim == 2 else value.transpose(3, 2, 0, 1)
        tensors[f"{stem}.weight" if kind in ("kernel", "scale", "embedding") else name] = value
    return tensors


class TorchFile(NamedTuple):
    """The state dict of a PyTorch file, and the epoch written beside it."""

    tensors: Tensors
    epoch: int | None


def read_torch_file(file: epath.Path | pathlib.Path) -> TorchFile:
    """A PyTorch state dict, bare or under "state_dict", read with weights_only.

    Also OpenAI's .pt archives, which are TorchScript programs: only their
    tensors are read, nothing of the program is run.
    Raises UserError where torch is not installed, the file is damaged, or it
    holds other things than tensors.
    """
    torch = _import_torch(str(file))
    data = file.read_bytes()
    try:
        if _is_torchscript(data):
            return TorchFile(_read_torchscript(data, torch), None)
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as reason:
        raise UserError(
            f"{file} is damaged, or holds more than tensors and is not read, since that could run "
            "code."
        ) from reason
    except (RuntimeError, EOFError, OSError, KeyError, ValueError) as reason:
        raise UserError(
            f"{file} cannot be read ({reason}); it is damaged or not what its name says."
        ) from reason
    state, epoch = _state_dict(state, file)
    if not state or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise UserError(f"{file} is not a PyTorch state dict (names and tensors).")
    return TorchFile({name: _to_numpy(value, torch) for name, value in state.items()}, epoch)


def _state_dict(read: Any, file: epath.Path | pathlib.Path) -> tuple[Any, int | None]:
    """Return the state dict of what a file holds, and the epoch of a training checkpoint.

    Raise UserError that names a field of a checkpoint that is not known here.
    """
    if not isinstance(read, dict):
        raise UserError(f"{file} is not a PyTorch state dict (names and tensors).")
    if "state_dict" in read:
        if other := next((field for field in read if not _is_known(field)), None):
            raise UserError(
                f"{file} is a training checkpoint with the field {other!r}, which is not known "
                "here: save its state dict alone."
            )
        epoch = read.get("epoch")
        state = read["state_dict"]
        return state if isinstance(state, dict) else {}, epoch if isinstance(epoch, int) else None
    if other := next((field for field, value in read.items() if isinstance(value, dict)), None):
        raise UserError(
            f"{file} has no field 'state_dict', but a field {other!r}: save the state dict alone."
        )
    return read, None


def _is_known(field: Any) -> bool:
    return field == "state_dict" or field in _TRAINING_FIELDS


def write_torch_file(file: pathlib.Path, tensors: Tensors, epoch: int) -> None:
    """Write a state dict as the published code's framework saves it.

    Raise UserError where torch is not installed.
    """
    torch = _import_torch(str(file))
    state = {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}
    rest = dict.fromkeys(("optimizer", "scheduler", "val_result"))
    torch.save({"state_dict": state, "epoch": epoch, **rest}, file)


def _import_torch(file: str) -> Any:
    """The torch module, or a UserError that says which file asks for it."""
    try:
        import torch
    except ImportError as reason:
        raise UserError(
            f"{file} is a PyTorch file, which takes `pip install torch` (a CPU build will do)."
        ) from reason
    return torch


def _to_numpy(tensor: Any, torch: Any) -> np.ndarray:
    return (
        tensor.detach()
        .to(torch.float32 if tensor.dtype == torch.bfloat16 else tensor.dtype)
        .numpy()
    )


def _is_torchscript(data: bytes) -> bool:
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return False
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


class _Inert:
    """Stands for every class of a TorchScript program: attributes, no behaviour."""


def _read_torchscript(data: bytes, torch: Any) -> Tensors:
    """The tensors of a TorchScript archive through torch.load's weights_only unpickler.

    That unpickler refuses TorchScript archives by their look, so the data
    records are handed to it as the plain checkpoint that they also are, with
    each of the program's classes standing for an object without behaviour.
    """
    plain = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as source,
        zipfile.ZipFile(plain, "w", zipfile.ZIP_STORED) as target,
    ):
        for name in source.namelist():
            _, _, record = name.partition("/")
            if record in ("data.pkl", "version", "byteorder") or record.startswith("data/"):
                target.writestr(f"archive/{record}", source.read(name))
    classes = [
        (type("Inert", (_Inert,), {}), name)
        for name in torch.serialization.get_unsafe_globals_in_checkpoint(
            io.BytesIO(plain.getvalue())
        )
        if name.startswith("__torch__.")
    ]
    plain.seek(0)
    with torch.serialization.safe_globals(classes):
        root = torch.load(plain, map_location="cpu", weights_only=True)

    def walk(node: Any, prefix: str) -> Iterator[tuple[str, np.ndarray]]:
        for name, value in vars(node).items():
            if isinstance(value, torch.Tensor):
                yield prefix + name, _to_numpy(value, torch)
            elif isinstance(value, _Inert):
                yield from walk(value, f"{prefix}{name}.")

    return dict(walk(root, ""))
