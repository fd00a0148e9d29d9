"""Learned weights of CLIP: low-rank changes to attention (CLIP-LoRA), or layer norms (2SFS).

Symbols: L layers of a tower, l of them with learned weights, D its width, r rank.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dpt_jax.clip.blocks import Array, Params
from dpt_jax.clip.config import CLIPConfig, TransformerConfig
from dpt_jax.prompts import ALL_NORMS, LORA, Weights, torch_uniform

# A block's projections, by letters of weights.matrices.
MATRICES = {"q": "query", "k": "key", "v": "value", "o": "out"}
BLOCK_NORMS = ("ln_1", "ln_2")
OTHER_NORMS = {"vision": ("ln_pre", "ln_post"), "text": ("ln_final",)}


def towers_of(config: Weights, clip: CLIPConfig) -> Iterator[tuple[str, TransformerConfig, range]]:
    """Yield the towers with learned weights: name, sizes and layers (0-based)."""
    for name, tower in (("vision", clip.vision), ("text", clip.text)):
        if layers := getattr(config, name):
            yield name, tower, range(layers[0] - 1, layers[1] or tower.layers)


def init_weights(
    config: Weights, clip: CLIPConfig, key: Array, frozen: Params | None = None
) -> Params:
    """Return new weights, float32, by tower ("vision", "text").

    Low-rank changes W + (α/√r) B A begin with A ~ U(±1/√D) and B = 0:
    {"query": {"a": (l, r, D), "b": (l, D, r)}, …}. Layer norms begin as CLIP's:
    {"ln_1": {"scale": (l, D), "bias": (l, D)}, …}, and those outside of blocks (D,).

    frozen: The layer norms of CLIP's parameters, see `norms_of`. Without them, norms start as ones
    and zeros.
    """
    weights: Params = {}
    for name, tower, layers in towers_of(config, clip):
        weights[name] = own = {}
        if config.kind == LORA:
            for letter in config.matrices:
                draw = jax.random.fold_in(jax.random.fold_in(key, ord(name[0])), ord(letter))
                shape = (len(layers), config.rank, tower.width)
                a = torch_uniform(tower.width)(draw, shape)
                own[MATRICES[letter]] = {"a": a, "b": jnp.zeros_like(a).swapaxes(1, 2)}
            continue
        for norm in (*BLOCK_NORMS, *(OTHER_NORMS[name] if config.kind == ALL_NORMS else ())):
            stacked = (tower.layers,) if norm in BLOCK_NORMS else ()
            start = {"scale": jnp.ones((*stacked, tower.width))}
            start["bias"] = jnp.zeros_like(start["scale"])
            if frozen is not None:
                start = frozen[name][norm]
            rows = slice(layers.start, layers.stop if stacked else None)
            own[norm] = {kind: x[rows] if stacked else x for kind, x in start.items()}
    return weights


def norms_of(params: Params) -> dict[str, Params]:
    """Return the layer norms of CLIP's parameters, by tower and name."""
    return {
        name: {norm: params[name]["transformer"]["blocks"][norm] for norm in BLOCK_NORMS}
        | {norm: params[name][norm] for norm in others}
        for name, others in OTHER_NORMS.items()
    }


def merged(config: Weights, clip: CLIPConfig, frozen: Mapping[str, Any], weights: Params) -> Params:
    """Return CLIP's learned parameters, merged, by path.

    B A is added in float32; the sum has W's dtype.
    """
    found = {}
    for name, tower, layers in towers_of(config, clip):
        blocks, new = frozen[name]["transformer"]["blocks"], {}
        if config.kind == LORA:
            for matrix, factors in _low_rank(config, tower, layers, weights[name]).items():
                kernel = blocks[matrix]["kernel"]
                change = jnp.einsum("lor,lri->lio", factors["b"], factors["a"], precision="highest")
                total = kernel.astype(jnp.float32) + change.reshape(kernel.shape)
                new[matrix] = {"kernel": total.astype(kernel.dtype)}
        else:
            for norm in BLOCK_NORMS:
                new[norm] = {
                    kind: jnp.asarray(x)
                    .at[layers.start : layers.stop]
                    .set(weights[name][norm][kind])
                    for kind, x in blocks[norm].items()
                }
        others = {norm: x for norm, x in weights[name].items() if norm in OTHER_NORMS[name]}
        found[name] = {"transformer": {"blocks": new}, **others}
    return found


def over(frozen: Mapping[str, Any], changes: Params) -> Params:
    """Return parameters with some of them replaced; those of an absent tower are ignored."""
    return dict(frozen) | {
        name: over(frozen[name], new) if isinstance(new, dict) else new
        for name, new in changes.items()
        if name in frozen
    }


def adapted(
    config: Weights,
    clip: CLIPConfig,
    frozen: Mapping[str, Any],
    weights: Params,
    keys: dict[str, Array | None],
) -> dict[str, Mapping[str, Any]]:
    """Return the variables of `CLIP` with frozen and learned weights, for training.

    A block multiplies by A, then by B. This is cheap, and unlike with `merged`, no gradient of a
    full W is computed.

    keys: Dropout keys of a tower, one for each row of its batch; None for no dropout.
    """
    if config.kind != LORA:
        return {"params": over(frozen, merged(config, clip, frozen, weights))}
    adapters = {}
    for name, tower, layers in towers_of(config, clip):
        own: Params = {"low_rank": _low_rank(config, tower, layers, weights[name])}
        if (key := keys.get(name)) is not None:
            own["dropout"] = key, jnp.float32(config.dropout)
        adapters[name] = {"transformer": own}
    return {"params": frozen, "adapters": adapters}


def _low_rank(config: Weights, tower: TransformerConfig, layers: range, weights: Params) -> Params:
    """Return A and α/√r B of all layers of a tower, zero for layers without."""
    padding = (layers.start, tower.layers - layers.stop)
    scale = {"a": 1.0, "b": config.alpha / config.rank**0.5}
    return {
        matrix: {
            factor: jnp.pad(scale[factor] * x, (padding, (0, 0), (0, 0)))
            for factor, x in factors.items()
        }
        for matrix, factors in weights.items()
    }
