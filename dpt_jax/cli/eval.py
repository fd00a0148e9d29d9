"""Evaluate the newest prompts of a run, or a prompt file.

    dpt-jax eval --workdir=W [--config.dataset.root=DIR …]
    dpt-jax eval --config=configs/dpt.py:DATASET --config.init_from=W

The second command tests the prompts of W on another dataset, and writes to W/on/DATASET.
"""

import argparse

from dpt_jax.cli import train

add_arguments = train.add_arguments


def run(parser: argparse.ArgumentParser, arguments: list[str]) -> None:
    """Evaluate: `train --mode=eval`."""
    train.run(parser, ["--mode=eval", *arguments])
