"""CLIP weights from wherever people have them, checked tensor by tensor.

Every format is read into one flat dict under the names of transformers'
CLIPModel, and one table turns that into the tree of `dpt_jax.clip.model`.
PyTorch files are read with torch's weights_only unpickler and nothing else.
"""

import io
import json
import os
import pathlib
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.serialization
import flax.traverse_util
import jax
import numpy as np
from etils import epath

from dpt_jax.clip.model import ACTIVATIONS, CLIPConfig, TransformerConfig, param_shapes
from dpt_jax.clip.tokenizer import VOCABULARY_FILES, Tokenizer, load_tokenizer
from dpt_jax.errors import UserError

Tensors = dict[str, np.ndarray]
WEIGHT_FILES = ("model.safetensors", "flax_model.msgpack", "pytorch_model.bin")
ORBAX_FOLDER = "params"
BUNDLED = pathlib.Path(__file__).parent.parent / "assets"
# Not weights: index buffers of older transformers, sizes that OpenAI's archives repeat.
IGNORED = re.compile(r"(.*\.position_ids|input_resolution|context_length|vocab_size)$")


class Pretrained(NamedTuple):
    """A frozen CLIP on the host: sizes, float32 or given-dtype parameters, tokenizer."""

    config: CLIPConfig
    params: Any
    tokenizer: Tokenizer


def load_clip(weights: str, dtype: Any = np.float32) -> Pretrained:
    """Loads a CLIP ViT.

    weights: the name of a bundled model; a directory with config.json and
    model.safetensors, flax_model.msgpack or pytorch_model.bin; one of these
    files; one of OpenAI's .pt files; an Orbax directory written by
    `python -m dpt_jax.convert clip` (local or gs://); or an id on the Hugging
    Face hub. dtype: what the parameters are cast to.

    Raises UserError naming the file and tensor where something does not fit.
    """
    path = _locate(weights)
    if path.is_dir() and (path / ORBAX_FOLDER).exists():
        config = _config_from_file(path / "config.json")
        params = _read_orbax(path / ORBAX_FOLDER, config)
        return Pretrained(config, _cast(params, dtype), load_tokenizer(path))
    file = _weight_file(path) if path.is_dir() else path
    tensors = {k: v for k, v in _read_tensors(file).items() if not IGNORED.match(k)}
    config_file = file.parent / "config.json"
    if "visual.proj" in tensors or "visual.conv1.weight" in tensors:
        tensors = _openai_to_transformers(tensors, file)
        config = _config_from_shapes(tensors, file)
    elif config_file.exists():
        config = _config_from_file(config_file)
    else:
        raise UserError(f"{config_file} is missing: it holds the sizes of the model in {file.name}; put it beside it.")
    params = _to_tree(tensors, config, file)
    return Pretrained(config, _cast(params, dtype), load_tokenizer(file.parent))


def save_orbax(clip: Pretrained, directory: str) -> None:
    """Writes an Orbax directory that load_clip reads back (local or gs://).

    Raises UserError where the directory is already there.
    """
    import orbax.checkpoint as ocp

    target = epath.Path(os.path.abspath(directory) if "://" not in directory else directory)
    if target.exists():
        raise UserError(f"{target} already exists: choose a new directory, or delete it first.")
    target.mkdir(parents=True)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(target / ORBAX_FOLDER, clip.params)
    (target / "config.json").write_text(json.dumps(config_to_dict(clip.config), indent=2))
    for name, text in clip.tokenizer.files.items():
        (target / name).write_text(text)


def config_to_dict(config: CLIPConfig) -> dict[str, Any]:
    """The sizes as a config.json of transformers' CLIPModel."""

    def tower(part: TransformerConfig) -> dict[str, Any]:
        return {
            "hidden_size": part.width,
            "intermediate_size": part.mlp_width,
            "num_hidden_layers": part.layers,
            "num_attention_heads": part.heads,
            "hidden_act": part.activation,
            "layer_norm_eps": part.layer_norm_eps,
            "projection_dim": config.embed_dim,
        }

    end = config.vocab_size - 1
    text = {"vocab_size": config.vocab_size, "max_position_embeddings": config.context_length}
    special = {"bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
    vision = {"image_size": config.image_size, "patch_size": config.patch_size}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.embed_dim,
        "text_config": {"model_type": "clip_text_model", **tower(config.text), **text, **special},
        "vision_config": {"model_type": "clip_vision_model", **tower(config.vision), **vision},
    }


def to_transformers(params: Any, config: CLIPConfig) -> Tensors:
    """The parameters as the state dict of transformers' CLIPModel."""
    flat = flax.traverse_util.flatten_dict(jax.tree.map(np.asarray, params), sep="/")
    return {
        name: np.ascontiguousarray(entry.inverse(flat[entry.path] if entry.layer is None else flat[entry.path][layer]))
        for name, entry in _table(config)
        for layer in (entry.layer,)
    }


class _Entry(NamedTuple):
    """Where a tensor of transformers' CLIPModel goes: tree path, layer of a stack, and how."""

    path: str
    layer: int | None
    shape: tuple[int, ...]  # as transformers stores it
    forward: Callable[[np.ndarray], np.ndarray]
    inverse: Callable[[np.ndarray], np.ndarray]


def _table(config: CLIPConfig) -> Iterator[tuple[str, _Entry]]:
    """(name in transformers, _Entry) for every tensor of a CLIP of these sizes."""

    def same(x: np.ndarray) -> np.ndarray:
        return x

    def entry(path: str, shape: tuple[int, ...], layer: int | None = None) -> _Entry:
        return _Entry(path, layer, shape, same, same)

    def transposed(path: str, shape: tuple[int, int]) -> _Entry:
        return _Entry(path, None, shape, np.transpose, np.transpose)

    embed, patch = config.embed_dim, config.patch_size
    yield "logit_scale", entry("logit_scale", ())
    yield "visual_projection.weight", transposed("vision/projection", (embed, config.vision.width))
    yield "text_projection.weight", transposed("text/projection", (embed, config.text.width))

    width = config.vision.width
    yield "vision_model.embeddings.class_embedding", entry("vision/class_embedding", (width,))
    yield (
        "vision_model.embeddings.patch_embedding.weight",
        _Entry(
            "vision/patch_embedding",
            None,
            (width, 3, patch, patch),
            lambda x: x.transpose(2, 3, 1, 0).reshape(-1, width),
            lambda x: x.reshape(patch, patch, 3, width).transpose(3, 2, 0, 1),
        ),
    )
    positions = (config.grid**2 + 1, width)
    yield "vision_model.embeddings.position_embedding.weight", entry("vision/position_embedding", positions)
    tokens, places = ((n, config.text.width) for n in (config.vocab_size, config.context_length))
    yield "text_model.embeddings.token_embedding.weight", entry("text/token_embedding", tokens)
    yield "text_model.embeddings.position_embedding.weight", entry("text/position_embedding", places)

    # transformers' CLIP spells the first layer norm of the vision tower this way.
    norms = (
        ("vision", "pre_layrnorm", "ln_pre"),
        ("vision", "post_layernorm", "ln_post"),
        ("text", "final_layer_norm", "ln_final"),
    )
    for tower, theirs, ours in norms:
        for kind, name in (("weight", "scale"), ("bias", "bias")):
            yield f"{tower}_model.{theirs}.{kind}", entry(f"{tower}/{ours}/{name}", (getattr(config, tower).width,))

    for tower in ("vision", "text"):
        sizes: TransformerConfig = getattr(config, tower)
        for layer in range(sizes.layers):
            for theirs, leaf in _block_table(sizes):
                path = f"{tower}/transformer/blocks/{leaf.path}"
                yield f"{tower}_model.encoder.layers.{layer}.{theirs}", leaf._replace(path=path, layer=layer)


def _block_table(sizes: TransformerConfig) -> Iterator[tuple[str, _Entry]]:
    width, mlp, heads = sizes.width, sizes.mlp_width, (sizes.heads, sizes.width // sizes.heads)

    def linear(theirs: str, ours: str, shape: tuple[int, int], split_in: bool = False, split_out: bool = False) -> Any:
        inside = heads if split_in else (shape[1],)
        outside = heads if split_out else (shape[0],)
        flat_in_out = (shape[1], shape[0])
        yield (
            f"{theirs}.weight",
            _Entry(
                f"{ours}/kernel",
                None,
                shape,
                lambda x: x.T.reshape(*inside, *outside),
                lambda x: x.reshape(flat_in_out).T,
            ),
        )
        bias = _Entry(f"{ours}/bias", None, shape[:1], lambda x: x.reshape(outside), lambda x: x.reshape(-1))
        yield f"{theirs}.bias", bias

    for letter, name in (("q", "query"), ("k", "key"), ("v", "value")):
        yield from linear(f"self_attn.{letter}_proj", name, (width, width), split_out=True)
    yield from linear("self_attn.out_proj", "out", (width, width), split_in=True)
    yield from linear("mlp.fc1", "mlp_in", (mlp, width))
    yield from linear("mlp.fc2", "mlp_out", (width, mlp))
    for i in (1, 2):
        for kind, name in (("weight", "scale"), ("bias", "bias")):
            yield f"layer_norm{i}.{kind}", _Entry(f"ln_{i}/{name}", None, (width,), lambda x: x, lambda x: x)


def _to_tree(tensors: Tensors, config: CLIPConfig, file: epath.Path) -> Any:
    """The parameter tree, once every tensor is there, of the right shape, and none is left over."""
    flat: dict[str, Any] = {}
    left = dict(tensors)
    for name, entry in _table(config):
        if name not in left:
            raise UserError(
                f"{file}: tensor {name} is missing; the file is incomplete or not a CLIP ViT of these sizes."
            )
        value = left.pop(name)
        if value.shape != entry.shape and not (entry.shape == () and value.shape == (1,)):
            raise UserError(
                f"{file}: tensor {name} has shape {value.shape}, but the model's sizes ask for {entry.shape}; "
                "the file and its config.json do not belong together."
            )
        if not np.issubdtype(np.asarray(value).dtype, np.floating) and value.dtype.name != "bfloat16":
            raise UserError(f"{file}: tensor {name} is {value.dtype}, not floating point.")
        value = entry.forward(value.reshape(entry.shape))
        if entry.layer is None:
            flat[entry.path] = value
        else:
            flat.setdefault(entry.path, []).append(value)
    if left:
        raise UserError(
            f"{file}: tensor {sorted(left)[0]} is not part of a CLIP ViT of these sizes ({len(left)} such)."
        )
    flat = {path: np.stack(value) if isinstance(value, list) else value for path, value in flat.items()}
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def _cast(params: Any, dtype: Any) -> Any:
    # The temperature stays float32: exp() of a rounded logarithm is off by percents.
    cast = jax.tree.map(lambda x: np.asarray(x, dtype), params)
    return {**cast, "logit_scale": np.asarray(params["logit_scale"], np.float32)}


def _locate(weights: str) -> epath.Path:
    """The local or remote path that a `clip.weights` value means."""
    if not weights:
        raise UserError("clip.weights is empty: name a hub id, a directory, or a weight file.")
    bundled = BUNDLED / weights
    if re.fullmatch(r"[\w-]+", weights) and (bundled / "config.json").exists():
        return epath.Path(bundled)
    path = epath.Path(weights)
    if path.exists():
        return path
    looks_like_id = re.fullmatch(r"[\w.-]+/[\w.-]+", weights) and not weights.endswith((".pt", ".bin", ".safetensors"))
    if not looks_like_id or weights.startswith("."):
        raise UserError(f"clip.weights: {weights} is no file or directory here, and not an id on the Hugging Face hub.")
    return epath.Path(_from_hub(weights))


def _from_hub(repo_id: str) -> str:
    """The local snapshot of a hub repository: one weight file and the small files beside it."""
    import huggingface_hub

    small = ["config.json", *VOCABULARY_FILES]
    try:
        there = huggingface_hub.HfApi().list_repo_files(repo_id)
        weight = next((name for name in WEIGHT_FILES if name in there), None)
        return huggingface_hub.snapshot_download(repo_id, allow_patterns=[*small, *([weight] if weight else [])])
    except Exception as reason:  # no network, no such repository, a proxy's answer: many types
        try:
            return huggingface_hub.snapshot_download(repo_id, local_files_only=True)
        except Exception:
            first_line = str(reason).strip().split("\n")[0]
            raise UserError(
                f"clip.weights: {repo_id} is neither on this disk nor to be had from the Hugging Face hub "
                f"({type(reason).__name__}: {first_line}); check the name and the network, or give a local directory."
            ) from reason


def _weight_file(directory: epath.Path) -> epath.Path:
    for name in WEIGHT_FILES:
        if (directory / name).exists():
            return directory / name
    raise UserError(f"{directory} has no CLIP weights: one of {', '.join(WEIGHT_FILES)} is needed.")


def _read_tensors(file: epath.Path) -> Tensors:
    """A weight file as a flat dict of host arrays."""
    readers: dict[str, Callable[[epath.Path], Tensors]] = {
        ".safetensors": _read_safetensors,
        ".msgpack": _read_msgpack,
        **dict.fromkeys((".bin", ".pt", ".pth"), lambda file: read_torch_file(file).tensors),
    }
    if file.suffix not in readers:
        raise UserError(f"{file} is not a weight file: its name should end in {', '.join(readers)}.")
    try:
        return readers[file.suffix](file)
    except (UserError, MemoryError, ImportError):
        raise
    except Exception as reason:  # each format's library has its own types for a damaged file
        raise UserError(f"{file} cannot be read ({reason}); it is damaged or not what its name says.") from reason


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
    torch = import_torch(str(file))
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
        raise UserError(f"{file} cannot be read ({reason}); it is damaged or not what its name says.") from reason
    epoch = state.get("epoch") if isinstance(state, dict) else None
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise UserError(f"{file} is not a PyTorch state dict (names and tensors).")
    tensors = {name: _to_numpy(value, torch) for name, value in state.items()}
    return TorchFile(tensors, epoch if isinstance(epoch, int) else None)


def import_torch(file: str) -> Any:
    """The torch module, or a UserError that says which file asks for it."""
    try:
        import torch
    except ImportError as reason:
        raise UserError(
            f"{file} is a PyTorch file: reading it takes `pip install torch` (a CPU build will do)."
        ) from reason
    return torch


def _to_numpy(tensor: Any, torch: Any) -> np.ndarray:
    return tensor.detach().to(torch.float32 if tensor.dtype == torch.bfloat16 else tensor.dtype).numpy()


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
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(plain, "w", zipfile.ZIP_STORED) as target:
        for name in source.namelist():
            _, _, record = name.partition("/")
            if record in ("data.pkl", "version", "byteorder") or record.startswith("data/"):
                target.writestr(f"archive/{record}", source.read(name))
    classes = [
        (type("Inert", (_Inert,), {}), name)
        for name in torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(plain.getvalue()))
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


def _read_orbax(directory: epath.Path, config: CLIPConfig) -> Any:
    import orbax.checkpoint as ocp

    shapes = param_shapes(config)
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            there = checkpointer.metadata(directory).item_metadata.tree
            _check_same_tree(there, shapes, directory)
            wanted = jax.tree.map(lambda s: np.empty(s.shape, s.dtype), there)
            return jax.tree.map(np.asarray, checkpointer.restore(directory, wanted))
        except (OSError, ValueError, KeyError) as reason:
            raise UserError(f"{directory} is not a readable Orbax checkpoint of a CLIP ({reason}).") from reason


def _check_same_tree(there: Any, wanted: Any, directory: epath.Path) -> None:
    there, wanted = (flax.traverse_util.flatten_dict(t, sep="/") for t in (there, wanted))
    for name in sorted({*there, *wanted}):
        shapes = [tuple(t[name].shape) if name in t else None for t in (there, wanted)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"{directory}: tensor {name} has shape {shapes[0]}, but its config.json asks for {shapes[1]}."
            )


def _config_from_file(file: epath.Path) -> CLIPConfig:
    """Sizes from a config.json of transformers, missing keys as its CLIPConfig defaults."""
    try:
        raw = json.loads(file.read_text())
    except FileNotFoundError as reason:
        raise UserError(f"{file} is missing: it holds the sizes of the model.") from reason
    except ValueError as reason:
        raise UserError(f"{file} is not valid JSON ({reason}).") from reason
    kind = raw.get("model_type") if isinstance(raw, dict) else None
    if kind != "clip":
        raise UserError(f"{file} describes a model of type {kind!r}; only CLIP with a ViT image tower is supported.")
    import transformers

    full: Any = transformers.CLIPConfig.from_dict(raw)

    def tower(part: Any) -> TransformerConfig:
        if part.hidden_act not in ACTIVATIONS:
            raise UserError(f"{file}: activation {part.hidden_act!r} is not one of {', '.join(ACTIVATIONS)}.")
        return TransformerConfig(
            width=part.hidden_size,
            layers=part.num_hidden_layers,
            heads=part.num_attention_heads,
            mlp_width=part.intermediate_size,
            activation=part.hidden_act,
            layer_norm_eps=part.layer_norm_eps,
        )

    return CLIPConfig(
        embed_dim=full.projection_dim,
        image_size=full.vision_config.image_size,
        patch_size=full.vision_config.patch_size,
        vision=tower(full.vision_config),
        text=tower(full.text_config),
        vocab_size=full.text_config.vocab_size,
        context_length=full.text_config.max_position_embeddings,
    )


def _config_from_shapes(tensors: Tensors, file: epath.Path) -> CLIPConfig:
    """Sizes of one of OpenAI's models, whose heads are all 64 wide."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors:
            raise UserError(f"{file}: tensor {name} is missing; the file is incomplete or not a CLIP ViT.")
        return tensors[name].shape

    def tower(name: str, width: int) -> TransformerConfig:
        layers = {int(m[1]) for key in tensors if (m := re.match(rf"{name}_model\.encoder\.layers\.(\d+)\.", key))}
        mlp = shape(f"{name}_model.encoder.layers.0.mlp.fc1.weight")[0]
        return TransformerConfig(width, max(layers) + 1, width // 64, mlp)

    width, _, patch, _ = shape("vision_model.embeddings.patch_embedding.weight")
    positions = shape("vision_model.embeddings.position_embedding.weight")[0]
    vocab, text_width = shape("text_model.embeddings.token_embedding.weight")
    return CLIPConfig(
        embed_dim=shape("text_projection.weight")[0],
        image_size=round((positions - 1) ** 0.5) * patch,
        patch_size=patch,
        vision=tower("vision", width),
        text=tower("text", text_width),
        vocab_size=vocab,
        context_length=shape("text_model.embeddings.position_embedding.weight")[0],
    )


_OPENAI_NAMES = (
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"\.ln_(\d)\.", r".layer_norm\1."),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
)


def _openai_to_transformers(tensors: Tensors, file: epath.Path) -> Tensors:
    """OpenAI's tensor names to those of transformers' CLIPModel."""
    if any(name.startswith("visual.layer1.") for name in tensors):
        raise UserError(f"{file} is a CLIP with a ResNet image tower; only ViT image towers take prompts.")
    renamed: Tensors = {}
    for name, value in tensors.items():
        if name in ("visual.proj", "text_projection"):
            renamed["visual_projection.weight" if name == "visual.proj" else "text_projection.weight"] = value.T
            continue
        new = name
        for pattern, replacement in _OPENAI_NAMES:
            new = re.sub(pattern, replacement, new)
        if m := re.match(r"(.*)\.attn\.in_proj_(weight|bias)$", new):
            for letter, part in zip("qkv", np.split(value, 3), strict=True):
                renamed[f"{m[1]}.self_attn.{letter}_proj.{m[2]}"] = part
        else:
            renamed[new] = value
    return renamed
