"""The golden arrays of the published code, and the distance of arrays from them."""

import json
import pathlib

import jax
import numpy as np

from dpt_jax.training.checkpoints import digest

DATA = pathlib.Path(__file__).parents[1] / "golden"
SMALL = DATA / "dpt_small"


class Golden:
    """One file of golden arrays and what its `meta` says."""

    def __init__(self, name: str) -> None:
        self.arrays = np.load(DATA / f"{name}.npz")
        self.meta = json.loads(str(self.arrays["meta"]))

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[key]

    def tensors(self, prefix: str) -> dict[str, np.ndarray]:
        return {
            k.removeprefix(f"{prefix}/"): self.arrays[k]
            for k in self.arrays.files
            if k.startswith(f"{prefix}/")
        }


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference over the largest expected value."""
    return float(np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max())


def assert_close_in_norm(found, expected, bound: float) -> None:
    """Assert that each array differs from the expected one by less than this share of its norm."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    errors = jax.tree.map(
        lambda a, b: np.linalg.norm(a - b) / (np.linalg.norm(b) or 1.0), found, expected
    )
    assert max(jax.tree.leaves(errors)) < bound, errors


def same_bytes(a, b) -> bool:
    """Return whether two trees have the same arrays, to the last bit."""
    return jax.tree.structure(a) == jax.tree.structure(b) and digest(a) == digest(b)
