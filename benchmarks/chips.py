"""What chips can do, as their makers publish it, and the time that a step needs at the least.

Google's figures are those of https://cloud.google.com/tpu/docs/v5e, …/v5p and …/v6e, per chip.
"""

from typing import NamedTuple

from dpt_jax.errors import UserError


class Chip(NamedTuple):
    """One kind of chip.  Rates are per second; a matrix product in bfloat16 is the peak."""

    topology: str  # the smallest one that libtpu compiles for
    flops: float
    memory_bytes: float
    memory_bandwidth: float


CHIPS = {
    "v5e": Chip("v5e:2x2", 197e12, 16e9, 819e9),
    "v5p": Chip("v5p:2x2x1", 459e12, 95e9, 2765e9),
    "v6e": Chip("v6e:2x2", 918e12, 32e9, 1638e9),
}


# NVIDIA's H100 SXM, dense, as its data sheet has it; libtpu knows no such topology.
H100 = Chip("", 989e12, 80e9, 3350e9)


def chip_of(topology: str) -> Chip:
    """Return the chip of a topology such as "v5e:2x2".  Raise UserError for an unknown one."""
    kind, _, shape = topology.partition(":")
    if kind not in CHIPS or not shape:
        examples = ", ".join(chip.topology for chip in CHIPS.values())
        raise UserError(f"--topology={topology}: give one such as {examples}.")
    return CHIPS[kind]


def least_ms(chip: Chip, flops: float, memory_bytes: float) -> dict[str, float]:
    """Return the milliseconds that the chip needs for the operations, and to move the bytes."""
    return {
        "flops": round(1e3 * flops / chip.flops, 3),
        "memory": round(1e3 * memory_bytes / chip.memory_bandwidth, 3),
    }
