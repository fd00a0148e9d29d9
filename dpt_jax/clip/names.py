"""The tensors of transformers' CLIPModel and their place in our parameter tree."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import numpy as np
from etils import epath

from dpt_jax.clip.config import CLIPConfig, TransformerConfig
from dpt_jax.clip.files import Tensors
from dpt_jax.errors import UserError


def from_transformers(
    tensors: Tensors, config: CLIPConfig, file: epath.Path, spell: Callable[[str], str] = str
) -> Any:
    """The parameter tree, once every tensor is there, of the right shape, and none is left over.

    spell: what the file calls a tensor of transformers' CLIPModel, for the
    UserError that names one that does not fit.
    """
    flat: dict[str, Any] = {}
    left = dict(tensors)
    for name, entry in _table(config):
        if name not in left:
            raise UserError(
                f"{file}: tensor {spell(name)} is missing; the file is incomplete or not a CLIP "
                "ViT of these sizes."
            )
        value = left.pop(name)
        if value.shape != entry.shape and not (entry.shape == () and value.shape == (1,)):
            raise UserError(
                f"{file}: tensor {spell(name)} has shape {value.shape}, but the model's sizes ask "
                f"for {entry.shape}; the file and its configuration do not belong together."
            )
        if (
            not np.issubdtype(np.asarray(value).dtype, np.floating)
            and value.dtype.name != "bfloat16"
        ):
            raise UserError(f"{file}: tensor {spell(name)} is {value.dtype}, not floating point.")
        value = entry.forward(value.reshape(entry.shape))
        if entry.layer is None:
            flat[entry.path] = value
        else:
            flat.setdefault(entry.path, []).append(value)
    if left:
        raise UserError(
            f"{file}: tensor {spell(min(left))} is not part of a CLIP ViT of these sizes "
            f"({len(left)} such)."
        )
    flat = {
        path: np.stack(value) if isinstance(value, list) else value for path, value in flat.items()
    }
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def to_transformers(params: Any, config: CLIPConfig) -> Tensors:
    """The parameters as the state dict of transformers' CLIPModel."""
    flat = flax.traverse_util.flatten_dict(jax.tree.map(np.asarray, params), sep="/")
    tensors = {}
    for name, entry in _table(config):
        value = flat[entry.path] if entry.layer is None else flat[entry.path][entry.layer]
        tensors[name] = np.asarray(entry.inverse(value), order="C")
    return tensors


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
    yield (
        "vision_model.embeddings.position_embedding.weight",
        entry("vision/position_embedding", positions),
    )
    tokens, places = ((n, config.text.width) for n in (config.vocab_size, config.context_length))
    yield "text_model.embeddings.token_embedding.weight", entry("text/token_embedding", tokens)
    yield (
        "text_model.embeddings.position_embedding.weight",
        entry("text/position_embedding", places),
    )

    # transformers' CLIP spells the first layer norm of the vision tower this way.
    norms = (
        ("vision", "pre_layrnorm", "ln_pre"),
        ("vision", "post_layernorm", "ln_post"),
        ("text", "final_layer_norm", "ln_final"),
    )
    for tower, theirs, ours in norms:
        for kind, name in (("weight", "scale"), ("bias", "bias")):
            yield (
                f"{tower}_model.{theirs}.{kind}",
                entry(f"{tower}/{ours}/{name}", (getattr(config, tower).width,)),
            )

    for tower in ("vision", "text"):
        sizes: TransformerConfig = getattr(config, tower)
        for layer in range(sizes.layers):
            for theirs, leaf in _block_table(sizes):
                path = f"{tower}/transformer/blocks/{leaf.path}"
                yield (
                    f"{tower}_model.encoder.layers.{layer}.{theirs}",
                    leaf._replace(path=path, layer=layer),
                )


def _block_table(sizes: TransformerConfig) -> Iterator[tuple[str, _Entry]]:
    width, mlp, heads = sizes.width, sizes.mlp_width, (sizes.heads, sizes.width // sizes.heads)

    def linear(
        theirs: str,
        ours: str,
        shape: tuple[int, int],
        split_in: bool = False,
        split_out: bool = False,
    ) -> Any:
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
        bias = _Entry(
            f"{ours}/bias", None, shape[:1], lambda x: x.reshape(outside), lambda x: x.reshape(-1)
        )
        yield f"{theirs}.bias", bias

    for letter, name in (("q", "query"), ("k", "key"), ("v", "value")):
        yield from linear(f"self_attn.{letter}_proj", name, (width, width), split_out=True)
    yield from linear("self_attn.out_proj", "out", (width, width), split_in=True)
    yield from linear("mlp.fc1", "mlp_in", (mlp, width))
    yield from linear("mlp.fc2", "mlp_out", (width, mlp))
    for i in (1, 2):
        for kind, name in (("weight", "scale"), ("bias", "bias")):
            yield (
                f"layer_norm{i}.{kind}",
                _Entry(f"ln_{i}/{name}", None, (width,), lambda x: x, lambda x: x),
            )
