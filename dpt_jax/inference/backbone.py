"""What tells one CLIP from another, of whose prompts the sizes alone would fit."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dpt_jax.clip.config import CLIPConfig
from dpt_jax.runtime import devices


def backbone_id(params: Any, replicated: bool = True) -> str:
    """Return what tells one CLIP from another of its sizes, whatever type it is loaded in.

    replicated: whether they have a leading device axis.
    """
    some = [params["vision"]["class_embedding"], params["vision"]["ln_post"], params["logit_scale"]]
    some = devices.to_host(some) if replicated else some
    rounded = [np.asarray(x).astype(jnp.bfloat16).tobytes() for x in jax.tree.leaves(some)]
    return hashlib.sha256(b"".join(rounded)).hexdigest()[:16]


def computes(clip: CLIPConfig) -> dict[str, Any]:
    """Return what a CLIP does with its weights, and with images, that the weights do not say."""
    return {
        "preprocessing": clip.preprocessing.to_dict(),
        **{
            name: {"heads": tower.heads, "activation": tower.activation}
            for name, tower in (("vision", clip.vision), ("text", clip.text))
        },
    }
