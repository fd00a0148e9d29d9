"""When two trees of prompts are the same."""

import jax
import numpy as np

from dpt_jax import settings


def same_bytes(a, b):
    a, b = (
        settings.flat(
            jax.tree.map(lambda x: (x.dtype, x.shape, np.ascontiguousarray(x).tobytes()), t)
        )
        for t in (a, b)
    )
    return a == b
