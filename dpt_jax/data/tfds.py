"""The datasets of the paper from tensorflow-datasets."""

from dpt_jax.data.records import Splits
from dpt_jax.errors import UserError


def read_tfds(name: str, root: str) -> Splits:
    """Not there yet."""
    raise UserError(f"dataset.source=tfds is not there yet: use dataset.source=coop for {name}.")
