"""Weight files: their formats, read into flat dicts of host arrays, and the names of the tensors.

No file runs code: safetensors holds numbers only. In the pickle of a PyTorch file, every class is
replaced by one without behaviour, so PyTorch need not be installed. The names are those of
transformers and of OpenAI's code, which open_clip uses too.
"""

import collections
import io
import math
import os
import pathlib
import pickle
import re
import zipfile
from collections.abc import Iterator
from types import EllipsisType
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from etils import epath

from dpt_jax.clip.blocks import Params
from dpt_jax.clip.config import CLIPConfig, read_json
from dpt_jax.clip.model import param_shapes
from dpt_jax.errors import UserError
from dpt_jax.io import is_remote, reading, write_whole

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
_VISION, _TEXT = "vision_model.embeddings.", "text_model.embeddings."
# Our name, transformers', OpenAI's. "." and "_" at the end are followed by weight or bias.
_NAMES = (
    ("logit_scale", "logit_scale", "logit_scale"),
    ("vision/class_embedding", f"{_VISION}class_embedding", "visual.class_embedding"),
    ("vision/patch_embedding", f"{_VISION}patch_embedding.weight", "visual.conv1.weight"),
    (
        "vision/position_embedding",
        f"{_VISION}position_embedding.weight",
        "visual.positional_embedding",
    ),
    ("vision/ln_pre", "vision_model.pre_layrnorm.", "visual.ln_pre."),
    ("vision/ln_post", "vision_model.post_layernorm.", "visual.ln_post."),
    ("vision/projection", "visual_projection.weight", "visual.proj"),
    ("vision/transformer/blocks", "vision_model.encoder.layers.", "visual.transformer.resblocks."),
    ("text/token_embedding", f"{_TEXT}token_embedding.weight", "token_embedding.weight"),
    ("text/position_embedding", f"{_TEXT}position_embedding.weight", "positional_embedding"),
    ("text/ln_final", "text_model.final_layer_norm.", "ln_final."),
    ("text/projection", "text_projection.weight", "text_projection"),
    ("text/transformer/blocks", "text_model.encoder.layers.", "transformer.resblocks."),
    # Of a block. OpenAI's query, key and value are the thirds of one tensor.
    ("ln_1", "layer_norm1.", "ln_1."),
    ("ln_2", "layer_norm2.", "ln_2."),
    ("query", "self_attn.q_proj.", "attn.in_proj_"),
    ("key", "self_attn.k_proj.", "attn.in_proj_"),
    ("value", "self_attn.v_proj.", "attn.in_proj_"),
    ("out", "self_attn.out_proj.", "attn.out_proj."),
    ("mlp_in", "mlp.fc1.", "mlp.c_fc."),
    ("mlp_out", "mlp.fc2.", "mlp.c_proj."),
)
TRANSFORMERS = {ours: name for ours, name, _ in _NAMES}
OPENAI = {ours: name for ours, _, name in _NAMES}
# From multi-device training, torch.compile, and open_clip's separate text tower.
PREFIX = re.compile(r"^(module\.|_orig_mod\.)*(text\.)?")
# Buffers of OpenAI's archives and of older versions of the libraries; not weights.
BUFFER = re.compile(r"attn_mask|input_resolution|context_length|vocab_size|.*\.position_ids")


def read_tensors(file: epath.Path) -> Tensors:
    """Return the tensors of a weight file, or of all files that an index names."""
    if file.name.endswith(INDEX):
        with reading(file, "the index of a model's weight files"):
            shards = sorted(set(read_json(file)["weight_map"].values()))
            if not shards or any(pathlib.PurePath(shard).name != shard for shard in shards):
                raise ValueError(f"it names the files {shards}")
        parts = [read_tensors(file.parent / shard) for shard in shards]
        return {name: value for part in parts for name, value in part.items()}
    if file.suffix == ".safetensors":
        with reading(file, "a .safetensors file of weights"):
            if is_remote(file):
                return safetensors.numpy.load(file.read_bytes())
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
        if not tensors or not all(isinstance(value, np.ndarray) for value in tensors.values()):
            raise ValueError("it holds something other than tensors: save a state dict only")
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


def write_torch_file(file: epath.Path | pathlib.Path, tensors: Tensors, epoch: int) -> None:
    """Write a state dict as the framework of the published code saves it."""
    try:
        import torch
    except ImportError as reason:
        raise UserError(f"{file} needs `pip install torch` (a CPU build will do).") from reason
    state = {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}
    rest = dict.fromkeys(("optimizer", "scheduler", "val_result"))
    content = io.BytesIO()  # torch.save cannot write to a bucket
    torch.save({"state_dict": state, "epoch": epoch, **rest}, content)
    write_whole(file, content.getvalue())


class _Parameter(NamedTuple):
    """A parameter, and where and how a file stores it.

    Attributes:
      path: in our tree, with "/".
      shape: ours.
      names: its tensor in the file, or one for each layer.
      stored: shape of such a tensor.
      rows: the rows of such a tensor that belong to this parameter.
      axes: permutation of the tensor's axes to our order, before it is reshaped to `shape`.
    """

    path: str
    shape: tuple[int, ...]
    names: list[str]
    stored: tuple[int, ...]
    rows: slice | EllipsisType
    axes: tuple[int, ...]


def params_of(tensors: Tensors, config: CLIPConfig, file: epath.Path) -> Params:
    """Return the parameters of a weight file in either layout, in the file's type.

    Raise UserError naming a tensor that is missing, left over or does not fit.
    """
    used, flat = set(), {}
    count, tensors = len(tensors), {PREFIX.sub("", name): x for name, x in tensors.items()}
    if len(tensors) < count:
        raise UserError(f"{file} has tensors whose names differ only in {PREFIX.pattern}.")
    table = OPENAI if any(name.startswith("visual.") for name in tensors) else TRANSFORMERS
    for parameter in _parameters(config, table):
        layers = [_layer(tensors, name, parameter, file) for name in parameter.names]
        flat[parameter.path] = np.stack(layers).reshape(parameter.shape)
        used.update(parameter.names)
    for name in sorted(tensors.keys() - used):
        if not BUFFER.fullmatch(name):
            raise UserError(f"{file}: tensor {name} is not part of a CLIP ViT of these sizes.")
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def _layer(tensors: Tensors, name: str, parameter: _Parameter, file: epath.Path) -> np.ndarray:
    """Return a layer of a parameter with our axes.  Raise UserError if its tensor does not fit."""
    value, shape = tensors.get(name), parameter.stored
    if value is None:
        raise UserError(f"{file}: tensor {name} of a CLIP ViT of these sizes is missing.")
    fits = value.shape in (shape, shape or (1,))  # a scalar may be stored as a vector of one
    if not fits or not jnp.issubdtype(value.dtype, jnp.floating):
        raise UserError(
            f"{file}: tensor {name} is {value.dtype} {value.shape}, but the configuration asks for "
            f"floating point {shape}; the two do not belong together."
        )
    return value.reshape(shape)[parameter.rows].transpose(parameter.axes)


def tensors_of(params: Params, config: CLIPConfig, table: dict[str, str] = TRANSFORMERS) -> Tensors:
    """Return the parameters as the state dict of transformers' CLIPModel, or of OPENAI's names."""
    flat = flax.traverse_util.flatten_dict(jax.tree.map(np.asarray, params), sep="/")
    found: Tensors = {}
    for parameter in _parameters(config, table):
        layers = flat[parameter.path].reshape(len(parameter.names), -1)
        for name, layer in zip(parameter.names, layers, strict=True):
            tensor = found.setdefault(name, np.empty(parameter.stored, layer.dtype))
            own = tensor[parameter.rows].transpose(parameter.axes)  # a view
            own[...] = layer.reshape(own.shape)
    return found


def _parameters(config: CLIPConfig, table: dict[str, str]) -> Iterator[_Parameter]:
    """Yield the parameters of a model with their places in a file that is named by `table`."""
    kinds = {"kernel": "weight", "scale": "weight", "bias": "bias"}
    thirds = ("query", "key", "value") if table is OPENAI else ()
    for path, leaf in flax.traverse_util.flatten_dict(param_shapes(config), sep="/").items():
        shape = leaf.shape
        rows: slice | EllipsisType = ...
        module, _, kind = path.rpartition("/")
        blocks, _, part = module.rpartition("/")
        if path in table:
            names = [table[path]]
        elif module in table:  # a layer norm
            names = [table[module] + kinds[kind]]
        else:
            names = [f"{table[blocks]}{i}.{table[part]}{kinds[kind]}" for i in range(shape[0])]
            shape = shape[1:]
        stored, axes = _stored(path, shape, config, table)
        if part in thirds:
            first = thirds.index(part) * stored[0]
            rows, stored = slice(first, first + stored[0]), (3 * stored[0], *stored[1:])
        yield _Parameter(path, leaf.shape, names, stored, rows, axes)


def _stored(
    path: str, shape: tuple[int, ...], config: CLIPConfig, table: dict[str, str]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shape of a parameter in a file, and the permutation of its axes to ours."""
    if path == "vision/patch_embedding":
        return (shape[-1], 3, config.patch_size, config.patch_size), (2, 3, 1, 0)
    if path.endswith("/bias"):  # those of query, key and value are (heads, size) here
        return (math.prod(shape),), (0,)
    projection = path.endswith("/projection") and table is TRANSFORMERS
    if path.endswith("/kernel") or projection:
        inputs = 2 if "/out/" in path else 1  # axes: heads and their size, or the width
        return (math.prod(shape[inputs:]), math.prod(shape[:inputs])), (1, 0)
    return shape, tuple(range(len(shape)))
