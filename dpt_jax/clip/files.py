"""Weight files as flat dicts of host arrays, whatever wrote them.

PyTorch files are read with torch's weights_only unpickler and nothing else.
"""

import io
import os
import pathlib
import pickle
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.serialization
import flax.traverse_util
import numpy as np
from etils import epath

from dpt_jax.errors import UserError

Tensors = dict[str, np.ndarray]


def read_tensors(file: epath.Path) -> Tensors:
    """A weight file as a flat dict of host arrays."""
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
        return readers[file.suffix](file)
    except (UserError, MemoryError, ImportError):
        raise
    except Exception as reason:  # each format's library has its own types for a damaged file
        raise UserError(
            f"{file} cannot be read ({reason}); it is damaged or not what its name says."
        ) from reason


def _read_safetensors(file: epath.Path) -> Tensors:
    import safetensors.numpy

    return safetensors.numpy.load_file(os.fspath(file))


def _read_msgpack(file: epath.Path) -> Tensors:
    """A Flax checkpoint of transformers: kernels are transposed, scale and embedding are weights."""
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
            f"{file} is damaged, or holds more than tensors and is not read, since that could run code."
        ) from reason
    except (RuntimeError, EOFError, OSError, KeyError, ValueError) as reason:
        raise UserError(
            f"{file} cannot be read ({reason}); it is damaged or not what its name says."
        ) from reason
    epoch = state.get("epoch") if isinstance(state, dict) else None
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise UserError(f"{file} is not a PyTorch state dict (names and tensors).")
    tensors = {name: _to_numpy(value, torch) for name, value in state.items()}
    return TorchFile(tensors, epoch if isinstance(epoch, int) else None)


def write_torch_file(file: pathlib.Path, tensors: Tensors, epoch: int) -> None:
    """A state dict as the published code's framework saves it.  Raises UserError where torch is not installed."""
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
