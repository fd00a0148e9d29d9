"""Check the results, repeatability, loading, storage and speed of this machine.

    dpt-jax check [--workdir=W] [--clip=CLIP] [--data=DIR] [--quick] [--json]

Prints a table: agreement with the published code, repeatability to the bit, the speed of a step, of
loading and of the folder or bucket W, and agreement of several hosts. Exit code 1 if a line is not
ok. The table can be pasted into an issue.
"""

import argparse
import dataclasses
import sys

from dpt_jax import cli
from dpt_jax.errors import BUG


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--workdir", metavar="W", default=".", help="folder or gs:// to write to")
    add("--clip", help="vit-b-32, vit-b-16, vit-l-14 or small with random weights, or a hub id, "
        "folder or file of weights; default vit-b-16, with --quick vit-b-32")  # fmt: skip
    add("--data", metavar="DIR", default="", help="images to load; default: generated ones")
    add("--quick", action="store_true", help="fewer checks: a minute on a CPU")
    add("--json", action="store_true", help="print the lines as JSON")
    cli.add_hosts(parser)


def run(flags: argparse.Namespace) -> None:
    cli.connect_hosts(flags)
    import json

    from dpt_jax import distributed
    from dpt_jax.check import check, table
    from dpt_jax.io import as_path
    from dpt_jax.logging import say

    clip = flags.clip or ("vit-b-32" if flags.quick else "vit-b-16")
    rows = check(as_path(flags.workdir), clip, flags.data, flags.quick)
    as_json = json.dumps([dataclasses.asdict(row) for row in rows], indent=2)
    say(as_json if flags.json else table(rows))
    if not distributed.is_first() and (failed := [row for row in rows if row.ok is False]):
        print(f"On another host:\n{table(failed)}", file=sys.stderr)
    if not distributed.on_all_hosts(all(row.ok is not False for row in rows)):
        sys.exit(BUG)
