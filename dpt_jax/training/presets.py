"""Whole tables under one name: what --preset stands for."""

from typing import NamedTuple

from dpt_jax.data.catalogue import PAPER_DATASETS
from dpt_jax.errors import UserError
from dpt_jax.methods import OF_THE_PAPER
from dpt_jax.settings.recipes import FEW_SHOT


class Preset(NamedTuple):
    """The runs of a table; their settings are the published ones of each method and dataset."""

    protocol: str
    methods: tuple[str, ...]
    datasets: tuple[str, ...]
    shots: tuple[int, ...]
    seeds: tuple[int, ...]


# The table and the figure of DPT's paper. Zero-shot has neither shots nor seeds, so its 825
# accuracies are 671 runs.
PAPER = Preset(FEW_SHOT, OF_THE_PAPER, PAPER_DATASETS, shots=(1, 2, 4, 8, 16), seeds=(1, 2, 3))
PRESETS = {"paper": PAPER}


def preset_of(name: str, protocol: str | None) -> Preset:
    """Return the preset of a name.

    protocol: that of the command line. Raise UserError for an unknown name, and for another
    protocol, since a preset is the table of one.
    """
    if name not in PRESETS:
        raise UserError(f"--preset={name}: it is not one of {', '.join(PRESETS)}.")
    preset = PRESETS[name]
    if protocol not in (None, preset.protocol):
        raise UserError(
            f"--preset={name} is a table of --protocol={preset.protocol}, not of {protocol}: leave "
            "one of the two out."
        )
    return preset
