"""Draw what the image tower attends to, with and without the prompts.

    dpt-jax visualize W IMAGE… [--top=4] [--out=DIR] [--clip=WEIGHTS]

Writes one PNG per image to DIR (W/pictures): the image and its likeliest classes, the attention of
the last block's class token without and with the prompts, and the attention by which CAVPT computes
the prompt of each of these classes.
"""

import argparse
import itertools
import pathlib
import sys

from dpt_jax import cli
from dpt_jax.errors import UserError

FOLDER = "pictures"
TOP, MOST = 4, 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    cli.add_run(parser, images=True)
    parser.add_argument("--top", type=int, choices=range(1, MOST + 1), default=TOP, metavar="N",
                        help=f"classes per image, 1 to {MOST} ({TOP})")  # fmt: skip
    parser.add_argument("--out", metavar="DIR", help="the folder to write to; default W/pictures")


def run(flags: argparse.Namespace) -> None:
    from dpt_jax.data.folder import find_images
    from dpt_jax.io import as_path, make_folder, write_whole
    from dpt_jax.logging import say
    from dpt_jax.predictor import describe, load
    from dpt_jax.report.one_run import draw_sight
    from dpt_jax.training.checkpoints import folder_of

    workdir, paths = as_path(flags.workdir), find_images(flags.images)
    predictor = load(workdir, clip=flags.clip, batch_size=1)
    out = as_path(flags.out) if flags.out else folder_of(workdir) / FOLDER
    folder = make_folder(out, "--out")
    taken = {as_path(path).resolve() for path in paths}  # no image is overwritten by its picture
    unreadable = 0
    for path in paths:
        try:
            (sight,) = describe(predictor, path, flags.top)
        except UserError as reason:
            unreadable += 1
            say(str(reason), file=sys.stderr)
            continue
        name = pathlib.PurePath(path).stem
        names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
        files = (folder / f"{name}.png" for name in names)
        file = next(file for file in files if file.resolve() not in taken)
        taken.add(file.resolve())
        write_whole(file, draw_sight(sight, path, predictor.model.config.method))
        say(str(file))
    if unreadable == len(paths):
        raise UserError(f"none of the {len(paths)} images could be read.")
