"""Digests of what a checkpoint holds."""

import hashlib
import json
from typing import Any

import jax
import numpy as np


def digest(tree: Any) -> str:
    """Return the SHA-256 of a tree of host arrays: types, shapes and bytes, in the tree's order."""
    found = hashlib.sha256()
    for leaf in map(np.asarray, jax.tree.leaves(tree)):
        found.update(f"{leaf.dtype} {leaf.shape} ".encode())
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()


def digest_of_json(values: Any) -> str:
    """Return the SHA-256 of values as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
