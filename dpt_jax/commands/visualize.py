"""Draw what a trained prompt sees in images.

    python -m dpt_jax.visualize --workdir=W IMAGE… [--top=4] [--out=DIR] [--clip=WEIGHTS]

Writes one PNG an image to DIR (W/pictures): the image and its likeliest classes,
what the class token of CLIP's last block looks at without the prompts and with
them, and what CAVPT made the prompt of each of these classes of.
"""

import itertools
import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from dpt_jax.commands import flags as cli
from dpt_jax.data.folder import find_images
from dpt_jax.errors import UserError
from dpt_jax.runtime.files import make_folder

FOLDER = "pictures"
TOP = 4


def main(argv: Sequence[str]) -> None:
    if len(argv) < 2:
        raise UserError("no image is named: python -m dpt_jax.visualize --workdir=W IMAGE…")
    paths = find_images(argv[1:])
    from dpt_jax.inference.attention import describe
    from dpt_jax.report.heat_maps import draw_sight
    from dpt_jax.runtime.console import say
    from dpt_jax.storage import prompt_file

    predictor = cli.load_predictor(batch_size=1)
    default = prompt_file.folder_of(cli.workdir()) / FOLDER
    folder = make_folder(pathlib.Path(flags.FLAGS.out or default), "--out")
    taken = {
        pathlib.Path(path).resolve() for path in paths
    }  # no image is overwritten by its picture
    unreadable = 0
    for path in paths:
        try:
            pixels = predictor.pixels(path)
        except UserError as reason:
            unreadable += 1
            say(str(reason), file=sys.stderr)
            continue
        name = pathlib.Path(path).stem
        files = (
            folder / f"{name}{f'-{number}' if number > 1 else ''}.png"
            for number in itertools.count(1)
        )
        file = next(file for file in files if file.resolve() not in taken)
        taken.add(file.resolve())
        (sight,) = describe(predictor, pixels, flags.FLAGS.top)
        draw_sight(sight, path, predictor.model.prompts.method, file)
        say(str(file))
    if unreadable == len(paths):
        raise UserError(f"none of the {len(paths)} images could be read.")


if __name__ == "__main__":
    cli.define_predictor_flags()
    flags.DEFINE_integer(
        "top", TOP, "How many of the likeliest classes are shown.", lower_bound=1, upper_bound=8
    )
    flags.DEFINE_string("out", None, "The folder to write to; W/pictures where it is not given.")
    cli.run(main)
