"""When two trees of prompts are the same."""

import jax
import numpy as np

from dpt_jax.config import flat


def same_bytes(a, b):
    a, b = (
        flat(jax.tree.map(lambda x: (x.dtype, x.shape, np.ascontiguousarray(x).tobytes()), t))
        for t in (a, b)
    )
    return a == b
