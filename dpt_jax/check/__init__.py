"""`dpt-jax check`: checks of a machine's results, repeatability, loading, storage and speed."""

import contextlib
import sys
from collections.abc import Iterator

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
      workdir: where files are written, in a temporary folder.
      clip: the CLIP to time: one of SIZES with random weights, or a `clip.weights`.
      data: a folder of images to load, "" for generated JPEGs.
      quick: whether to use fewer steps, images and devices.
    """
    dtype = compute_dtype(measure.settings())
    pretrained = random_clip(clip, dtype) if clip in SIZES else load_clip(clip, dtype)
    rows, images = machine.machine(), 0.0

    @contextlib.contextmanager
    def part(group: str) -> Iterator[None]:
        say(f"checking {group} …", file=sys.stderr)
        with failing(rows, group, "the check itself"):
            yield

    with part("hosts"):
        rows += machine.hosts({"--clip": clip, "--quick": str(quick)})
    with part("storage"):
        rows += machine.storage(workdir)
    with part("numbers"):
        for device in jax.local_devices()[: 1 if quick else None]:
            for kind in golden.BOUNDS:
                rows += golden.rows(golden.compute(kind, device), kind, str(device))
    with part("same bits"):
        rows += measure.same_bits()
    with part("speed"):
        found, images = measure.speed(clip, pretrained, quick)
        rows += found
    with part("input"):
        rows += measure.pipeline(data, images, quick)
    return rows
