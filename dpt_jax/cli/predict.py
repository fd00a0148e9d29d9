"""Classify images with a trained prompt.

    dpt-jax predict W PATH… [--top=5] [--json | --csv=FILE] [--classes=FILE] [--clip=WEIGHTS]

W is a workdir or a file of `dpt-jax convert export`. PATH is an image, a folder (with the images in
it) or a pattern such as 'photos/**/*.jpg'. Images that cannot be read are reported, and the others
are classified. --json writes one list to standard output; --classes=FILE takes other class names,
one per line.
"""

import argparse
import contextlib
import csv
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dpt_jax.cli import arguments as shared
from dpt_jax.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from dpt_jax.predictor.predictor import Predictor

BATCH = 128  # images that a device takes at a time, at most


@dataclasses.dataclass(frozen=True)
class Readable:
    """Read images, and remember why one could not be read: {path: reason}."""

    failed: dict[str, str]

    def __call__(self, path: str) -> "Image.Image":
        from dpt_jax.data.records import UnreadableImageError, read_image
        from dpt_jax.io import as_path

        try:
            return read_image(as_path(path))
        except UnreadableImageError as reason:
            self.failed[path] = str(reason)
            raise


class Output:
    """Where answers go, image by image: lines, one JSON list, or a CSV file."""

    def __init__(self, stack: contextlib.ExitStack, flags: argparse.Namespace, top: int) -> None:
        """stack: closes what is opened here. top: the classes reported for an image."""
        self._csv = self._json = None
        if flags.csv:
            from dpt_jax.io import as_path, text_stream

            file = as_path(flags.csv)
            try:
                out = stack.enter_context(text_stream(file))
            except OSError as reason:
                raise UserError(f"--csv: {file} cannot be written ({reason}).") from reason
            numbered = [
                f"{column}_{i + 1}" for i in range(top) for column in ("class", "probability")
            ]
            self._csv = csv.writer(out)
            self._csv.writerow(["path", "error", *numbered])
        elif flags.json:
            self._json = "["

    def write(self, path: str, top: Sequence[tuple[str, float]], error: str = "") -> None:
        """Write the likeliest classes of an image with their probabilities, or its error."""
        if self._csv:
            from dpt_jax.report.tables import inert

            answers = [cell for name, p in top for cell in (name, f"{p:.6f}")]
            self._csv.writerow(map(inert, [path, error, *answers]))
        elif self._json:
            classes = [{"class": name, "probability": p} for name, p in top]
            answer = {"error": error} if error else {"predictions": classes}
            line = json.dumps({"path": path, **answer}, ensure_ascii=False)
            print(self._json, line, sep="\n  ", end="", flush=True)
            self._json = ","
        elif not error:
            answers = [f"{name} {100 * p:.1f} %" for name, p in top]
            print(f"{path}  {'  '.join(answers)}", flush=True)
        if error:
            print(error, file=sys.stderr, flush=True)

    def finish(self) -> None:
        """End the list, after the last image."""
        if self._json:
            print("\n]", flush=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the run, and how answers are written."""
    shared.add_run(parser, "PATH…")
    parser.add_argument("--classes", metavar="FILE", help="other class names, one per line")
    parser.add_argument(
        "--top", type=shared.at_least_one, default=5, metavar="N", help="classes per image (5)"
    )
    parser.add_argument("--json", action="store_true", help="write a JSON list to standard output")
    parser.add_argument("--csv", metavar="FILE", help="write a table to this file")


def run(parser: argparse.ArgumentParser, arguments: list[str]) -> None:
    """Classify the images that are named."""
    flags = parser.parse_intermixed_args(arguments)
    if flags.json and flags.csv:
        raise UserError("give --json or --csv, not both.")
    workdir, names = shared.split_run(flags)
    if not names:
        raise UserError("no image is named: dpt-jax predict W IMAGE_OR_FOLDER…")
    from dpt_jax.data.folder import find_images

    paths = find_images(names)
    # Importing JAX takes seconds that a mistyped path need not wait for.
    from dpt_jax.io import as_path
    from dpt_jax.predictor.classnames import read_classnames

    classnames = read_classnames(as_path(flags.classes)) if flags.classes else None
    # The next power of two, so that few images wait for few, and one program serves many calls.
    rows = min(1 << (len(paths) - 1).bit_length(), BATCH)
    predictor = shared.load_predictor(flags, workdir, rows, classnames)
    failed = _classify(predictor, paths, flags)
    if flags.csv:
        print(f"written to {flags.csv}: {len(paths) - len(failed)} images")
    if len(failed) == len(paths):
        raise UserError(f"none of the {len(paths)} images could be read.")
    if failed:
        print(f"{len(failed)} of {len(paths)} images could not be read.", file=sys.stderr)


def _classify(
    predictor: "Predictor", paths: list[str], flags: argparse.Namespace
) -> dict[str, str]:
    """Write the answers for all images; return why some could not be read, {path: reason}."""
    import numpy as np

    from dpt_jax.evaluation.metrics import softmax
    from dpt_jax.logging import Progress

    top = min(flags.top, len(predictor.classnames))
    read = Readable({})
    with contextlib.ExitStack() as stack:
        output = Output(stack, flags, top)
        # On a terminal, answers and a bar would run into each other, and the answers say as much.
        bar = None
        if not sys.stdout.isatty() or flags.csv or flags.json:
            steps = -(-len(paths) // predictor.rows)
            bar = stack.enter_context(Progress("predict", steps, file=sys.stderr))
        for batch, outputs in predictor.answers(paths, read, skip_unreadable=True):
            probabilities = softmax(outputs.logits)
            best = np.argsort(-probabilities, axis=-1, kind="stable")[:, :top]
            for index, own, order in zip(batch["index"], probabilities, best, strict=True):
                answers = [(predictor.classnames[c], float(own[c])) for c in order]
                error = read.failed.get(paths[index], "")
                output.write(paths[index], [] if error else answers, error)
            if bar:
                bar.advance()
        output.finish()
    return read.failed
