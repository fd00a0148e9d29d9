"""Classifies images with a trained prompt.

    python -m dpt_jax.predict --workdir=W PATH… [--top=5] [--json | --csv=FILE] [--classes=FILE] [--clip=WEIGHTS]

W is a workdir or a file of `convert export`. PATH is an image, a folder (with
those in it) or a pattern such as 'photos/**/*.jpg'. Images that cannot be read
are reported and the others classified all the same. --json writes one list to
standard output; --classes=FILE takes other class names, one a line.
"""

import contextlib
import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence

import numpy as np
import scipy.special
from absl import flags
from PIL import Image

from dpt_jax.commands import flags as cli
from dpt_jax.data.folder import find_images
from dpt_jax.errors import UserError

BATCH = 128  # images that a device takes at a time, at most


@dataclasses.dataclass(frozen=True)
class Readable:
    """Reads images, and remembers why it could not: {path: reason}."""

    failed: dict[str, str]

    def __call__(self, path: str) -> Image.Image:
        from dpt_jax.data.records import UnreadableImageError, read_image

        try:
            return read_image(pathlib.Path(path))
        except UnreadableImageError as reason:
            self.failed[path] = str(reason)
            raise


class Output:
    """Where predictions go, image by image: lines for people, one JSON list, or a CSV file."""

    def __init__(self, stack: contextlib.ExitStack, top: int) -> None:
        """stack: closes what is opened. top: the classes told for an image."""
        self._csv = self._json = None
        if flags.FLAGS.csv:
            from dpt_jax.report.tables import CSVWriter

            try:
                file = pathlib.Path(flags.FLAGS.csv)
                out = stack.enter_context(
                    file.open("w", newline="", encoding="utf-8", errors="backslashreplace")
                )
            except OSError as reason:
                raise UserError(
                    f"--csv: {flags.FLAGS.csv} cannot be written ({reason})."
                ) from reason
            numbered = [
                f"{column}_{i + 1}" for i in range(top) for column in ("class", "probability")
            ]
            self._csv = CSVWriter(out, ["path", "error", *numbered])
        elif flags.FLAGS.json:
            self._json = "["

    def write(self, path: str, top: Sequence[tuple[str, float]], error: str = "") -> None:
        """The likeliest classes of an image with their probabilities, or why it has none."""
        if self._csv:
            self._csv.write(
                [path, error, *(cell for name, p in top for cell in (name, f"{p:.6f}"))]
            )
        elif self._json:
            told = (
                {"error": error}
                if error
                else {"predictions": [{"class": c, "probability": p} for c, p in top]}
            )
            line = json.dumps({"path": path, **told}, ensure_ascii=False)
            print(self._json, line, sep="\n  ", end="", flush=True)
            self._json = ","
        elif not error:
            print(f"{path}  {'  '.join(f'{name} {100 * p:.1f} %' for name, p in top)}", flush=True)
        if error:
            print(error, file=sys.stderr, flush=True)

    def finish(self) -> None:
        """Behind the last image."""
        if self._json:
            print("\n]", flush=True)


def main(argv: Sequence[str]) -> None:
    if flags.FLAGS.json and flags.FLAGS.csv:
        raise UserError("give --json or --csv, not both.")
    if len(argv) < 2:
        raise UserError("no image is named: python -m dpt_jax.predict --workdir=W IMAGE_OR_FOLDER…")
    paths = find_images(argv[1:])
    # Importing JAX takes seconds that a mistyped path need not wait for.
    from dpt_jax.data import loader
    from dpt_jax.data.records import Example
    from dpt_jax.inference.predictor import read_classnames
    from dpt_jax.runtime.console import Progress

    classnames = read_classnames(pathlib.Path(flags.FLAGS.classes)) if flags.FLAGS.classes else None
    # The next power of two, so that few images wait for few, and one program serves many calls.
    predictor = cli.load_predictor(min(1 << (len(paths) - 1).bit_length(), BATCH), classnames)
    told = min(flags.FLAGS.top, len(predictor.classnames))
    read = Readable({})
    examples = [Example(path, 0) for path in paths]
    clip = predictor.model.clip
    batches = loader.test_batches(
        read,
        examples,
        clip.image_size,
        predictor.rows,
        skip_unreadable=True,
        preprocessing=clip.preprocessing,
    )
    with contextlib.ExitStack() as stack:
        output = Output(stack, told)
        # On a terminal, lines of answers and a bar would run into each other, and the lines tell as much.
        lines = sys.stdout.isatty() and not (flags.FLAGS.csv or flags.FLAGS.json)
        steps = -(-len(paths) // predictor.rows)
        bar = None if lines else stack.enter_context(Progress("predict", steps, file=sys.stderr))
        for rows in batches:
            outputs, _ = predictor.see(rows["image"])
            probabilities = scipy.special.softmax(outputs.logits, axis=-1)
            best = np.argsort(-probabilities, axis=-1, kind="stable")[:, :told]
            for index, own, order in zip(rows["index"], probabilities, best, strict=True):
                top = [(predictor.classnames[c], float(own[c])) for c in order]
                error = read.failed.get(paths[index], "")
                output.write(paths[index], [] if error else top, error)
            if bar:
                bar.advance()
        output.finish()
    if flags.FLAGS.csv:
        print(f"written to {flags.FLAGS.csv}: {len(paths) - len(read.failed)} images")
    if len(read.failed) == len(paths):
        raise UserError(f"none of the {len(paths)} images could be read.")
    if read.failed:
        print(f"{len(read.failed)} of {len(paths)} images could not be read.", file=sys.stderr)


if __name__ == "__main__":
    cli.define_predictor_flags()
    flags.DEFINE_string("classes", None, "A file of other class names, one a line.")
    flags.DEFINE_integer("top", 5, "How many classes are told for an image.", lower_bound=1)
    flags.DEFINE_bool("json", False, "Write a list in JSON to standard output.")
    flags.DEFINE_string("csv", None, "Write a table to this file.")
    cli.run(main)
