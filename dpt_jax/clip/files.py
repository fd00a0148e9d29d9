"""Weight files of several formats as flat dicts of host arrays.

No file runs code: safetensors holds numbers only. In the pickle of a PyTorch file, every class is
replaced by one without behaviour, so PyTorch need not be installed.
"""

import collections
import io
import os
import pathlib
import pickle
import zipfile
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from etils import epath

from dpt_jax.clip.config import read_json
from dpt_jax.errors import UserError
from dpt_jax.io import reading, write_whole

Tensors = dict[str, np.ndarray]
INDEX = ".index.json"
_DTYPES = {
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "DoubleStorage": np.float64,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


def read_tensors(file: epath.Path) -> Tensors:
    """Return the tensors of a weight file, or of all files that an index names.

    Raise UserError if one is of another kind or damaged.
    """
    if file.name.endswith(INDEX):
        with reading(file, "the index of a model's weight files"):
            shards = sorted(set(read_json(file)["weight_map"].values()))
            if not shards or any(pathlib.PurePath(shard).name != shard for shard in shards):
                raise ValueError(f"it names the files {shards}")
        parts = [read_tensors(file.parent / shard) for shard in shards]
        return {name: value for part in parts for name, value in part.items()}
    if file.suffix == ".safetensors":
        with reading(file, "a .safetensors file of weights"):
            return safetensors.numpy.load_file(os.fspath(file))
    if file.suffix in (".bin", ".pt", ".pth"):
        return read_torch_file(file)[0]
    raise UserError(
        f"{file} is not a weight file: its name should end in .safetensors, .bin, .pt or .pth."
    )


def read_torch_file(file: epath.Path | pathlib.Path) -> tuple[Tensors, int | None]:
    """Return a PyTorch state dict, bare or under "state_dict", or the tensors of TorchScript.

    The second value is the epoch that a training wrote beside them, None if missing.
    """
    with reading(file, "a PyTorch file"), zipfile.ZipFile(io.BytesIO(file.read_bytes())) as archive:
        root: Any = _TorchUnpickler(archive).load()
        root = _scripted_tensors(root) if isinstance(root, _Inert) else root
        tensors: Tensors = root.get("state_dict", root)
        others = [name for name, value in tensors.items() if not isinstance(value, np.ndarray)]
        if others or not tensors:
            what = f"{others[0]!r} is not a tensor" if others else "it has no tensors"
            raise ValueError(f"{what}: save a state dict only")
    epoch = root.get("epoch")
    return dict(tensors), epoch if isinstance(epoch, int) else None


class _Inert(dict):
    """Stands for every object of a pickle that is not a tensor; it has attributes only."""

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def append(self, value: Any) -> None:
        """Ignore an element of an object that is a list."""

    extend = append


class _TorchUnpickler(pickle.Unpickler):
    """Reads what torch.save and torch.jit.save write, without importing any class.

    A tensor is a view of a storage, which is a record of the archive.
    """

    def __init__(self, archive: zipfile.ZipFile) -> None:
        pickled = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
        super().__init__(archive.open(pickled))
        self._archive, self._root = archive, pickled.removesuffix("data.pkl")
        self._storages: dict[str, np.ndarray] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in of a class or function; nothing is imported."""
        if module == "torch" and name in _DTYPES:
            return np.dtype(_DTYPES[name])
        named = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        }
        # A class of its own, since pickle sets attributes of classes too.
        return named.get((module, name), type("_Inert", (_Inert,), {}))

    def persistent_load(self, pid: Any) -> np.ndarray:
        """Return a storage as a vector."""
        _, dtype, key, _, count = pid
        if key not in self._storages:
            numbers = np.frombuffer(self._archive.read(f"{self._root}data/{key}"), dtype, count)
            self._storages[key] = numbers.astype(np.float32) if dtype == jnp.bfloat16 else numbers
        return self._storages[key]


def _tensor(
    storage: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
) -> np.ndarray:
    """Return a tensor as a view of its storage.  Raise ValueError if it is larger than that."""
    size = storage.itemsize
    return np.ndarray(shape, storage.dtype, storage, offset * size, [size * n for n in strides])


def _scripted_tensors(module: Any, prefix: str = "") -> Tensors:
    """Return the tensors of a TorchScript module and of the modules in it."""
    tensors: Tensors = {}
    for name, value in vars(module).items():
        if isinstance(value, np.ndarray):
            tensors[prefix + name] = value
        elif isinstance(value, _Inert):
            tensors |= _scripted_tensors(value, f"{prefix}{name}.")
    return tensors


def write_safetensors(file: epath.Path, tensors: Tensors) -> None:
    """Write tensors as transformers and open_clip do."""
    own = {name: np.asarray(x, order="C") for name, x in tensors.items()}
    write_whole(file, safetensors.numpy.save(own, {"format": "pt"}))


def write_torch_file(file: pathlib.Path, tensors: Tensors, epoch: int) -> None:
    """Write a state dict as the framework of the published code saves it."""
    try:
        import torch
    except ImportError as reason:
        raise UserError(f"{file} needs `pip install torch` (a CPU build will do).") from reason
    state = {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}
    rest = dict.fromkeys(("optimizer", "scheduler", "val_result"))
    torch.save({"state_dict": state, "epoch": epoch, **rest}, file)
