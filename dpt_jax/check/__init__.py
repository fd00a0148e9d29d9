"""`dpt-jax check`: checks of a machine's results, repeatability, loading, storage and speed."""

import sys
from collections.abc import Callable

import jax
from etils import epath

from dpt_jax.check import golden, machine, measure
from dpt_jax.check.programs import SIZES, random_clip
from dpt_jax.check.rows import Row, failing, table
from dpt_jax.clip.pretrained import load_clip
from dpt_jax.logging import say
from dpt_jax.training.setup import compute_dtype

__all__ = ["Row", "check", "table"]


def check(workdir: epath.Path, clip: str, data: str = "", quick: bool = False) -> list[Row]:
    """Return all lines of the table.  All hosts must call this together.

    Args:
      workdir: where files are written, in a folder that is removed.
      clip: the CLIP whose step is timed: one of SIZES with random weights, or a `clip.weights`.
      data: a folder of images to load, "" for generated JPEGs.
      quick: whether to use fewer steps, images and devices.
    """
    dtype = compute_dtype(measure.settings())
    pretrained = random_clip(clip, dtype) if clip in SIZES else load_clip(clip, dtype)
    rows = machine.machine()
    images = 0.0

    def numbers() -> list[Row]:
        devices = jax.local_devices()[: 1 if quick else None]
        return [
            row
            for device in devices
            for dtype in golden.BOUNDS
            for row in golden.rows(golden.compute(dtype, device), dtype, str(device))
        ]

    def speed() -> list[Row]:
        nonlocal images
        found, images = measure.speed(clip, pretrained, quick)
        return found

    parts: dict[str, Callable[[], list[Row]]] = {
        "hosts": lambda: machine.hosts({"--clip": clip, "--quick": str(quick)}),
        "storage": lambda: machine.storage(workdir),
        "numbers": numbers,
        "same bits": measure.same_bits,
        "speed": speed,
        "input": lambda: measure.pipeline(data, images, quick),
    }
    for group, part in parts.items():
        say(f"checking {group} …", file=sys.stderr)
        with failing(rows, group, "the check itself"):
            rows += part()
    return rows
