"""What tells one CLIP from another, of whose prompts the sizes alone would fit."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dpt_jax import distributed
from dpt_jax.clip.config import CLIPConfig
from dpt_jax.clip.pretrained import Pretrained


def backbone_id(clip: Pretrained, replicated: bool = True) -> str:
    """Return what tells one CLIP from another of its sizes, whatever type it is loaded in.

    It ends with what earlier versions wrote, which was of a few tensors alone. replicated: whether
    the parameters have a leading device axis.
    """
    vision = clip.params["vision"]
    some = [vision["class_embedding"], vision["ln_post"], clip.params["logit_scale"]]
    some = distributed.to_host(some) if replicated else some
    rounded = [np.asarray(x).astype(jnp.bfloat16).tobytes() for x in jax.tree.leaves(some)]
    return clip.digest + hashlib.sha256(b"".join(rounded)).hexdigest()[:16]


def is_same(one: str, other: str) -> bool:
    """Return whether two ids are of one CLIP, as far as the shorter one says."""
    return one.endswith(other) or other.endswith(one)


def computes(clip: CLIPConfig) -> dict[str, Any]:
    """Return what a CLIP does with its weights, and with images, that the weights do not say."""
    return {
        "preprocessing": clip.preprocessing.to_dict(),
        **{
            name: {"heads": tower.heads, "activation": tower.activation}
            for name, tower in (("vision", clip.vision), ("text", clip.text))
        },
    }
