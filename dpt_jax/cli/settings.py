"""Print every settings key with its default and a comment, as configs/common.py has them.

dpt-jax settings
"""

import argparse
import textwrap


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(flags: argparse.Namespace) -> None:
    import inspect

    from dpt_jax.config import BOUND, FREE
    from dpt_jax.configs import common

    for line in inspect.getsource(common.get_config).splitlines():
        line = line.strip()
        if line.startswith("# "):
            print(line)
        elif line.startswith("config.") and "ConfigDict" not in line:
            print(f"--{line.replace(' = ', '=', 1)}\n")
    for says, keys in (("A resumed run may change", FREE), ("It may never change", BOUND)):
        print(textwrap.fill(f"{says} {', '.join(keys)}.", 100))
    print("It may change all others with --allow_changes.")
