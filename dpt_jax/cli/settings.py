"""Print every settings key with its default, range and help.

dpt-jax settings
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the command takes no flags."""


def run(parser: argparse.ArgumentParser, arguments: list[str]) -> None:
    """Print the page that docs/settings.md has."""
    parser.parse_args(arguments)
    from dpt_jax.settings import page

    print(page(), end="")
