"""Classify images with a trained prompt.

    dpt-jax predict W PATH… [--top=5] [--json | --csv=FILE] [--classes=FILE] [--clip=WEIGHTS]

W is a workdir or a file of `dpt-jax convert export`. PATH is an image, a folder (with the images in
it) or a pattern such as 'photos/**/*.jpg'. Images that cannot be read are reported, and the others
are classified. If their folders are named as classes, the accuracy is printed on standard error.
--json writes one list to standard output; --classes=FILE takes other class names, one per line.
"""

import argparse
import contextlib
import csv
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dpt_jax.cli import arguments as shared
from dpt_jax.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from dpt_jax.predictor.predictor import Predictor

BATCH = 128  # images that a device takes at a time, at most


class Answer(NamedTuple):
    """The likeliest classes of an image with their probabilities, or why it cannot be read."""

    path: str
    classes: list[tuple[str, float]]
    error: str

    def as_json(self) -> dict[str, Any]:
        """Return the object of --json."""
        if self.error:
            return {"path": self.path, "error": self.error}
        predictions = [{"class": name, "probability": p} for name, p in self.classes]
        return {"path": self.path, "predictions": predictions}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the run, and how answers are written."""
    shared.add_run(parser, "PATH…")
    parser.add_argument("--classes", metavar="FILE", help="other class names, one per line")
    parser.add_argument(
        "--top", type=shared.at_least_one, default=5, metavar="N", help="classes per image (5)"
    )
    parser.add_argument("--json", action="store_true", help="write a JSON list to standard output")
    parser.add_argument("--csv", metavar="FILE", help="write a table to this file")


def run(flags: argparse.Namespace) -> None:
    """Classify the images that are named."""
    if flags.json and flags.csv:
        raise UserError("give --json or --csv, not both.")
    workdir, paths = shared.split_images(flags)
    # Importing JAX takes seconds, so wrong paths are reported before.
    from dpt_jax.data.folder import class_name
    from dpt_jax.io import as_path, text_stream
    from dpt_jax.logging import Progress
    from dpt_jax.predictor.predictor import load, read_classnames

    classnames = read_classnames(as_path(flags.classes)) if flags.classes else None
    # A power of two: small for few images, and one compiled program serves many calls.
    rows = min(1 << (len(paths) - 1).bit_length(), BATCH)
    predictor = load(workdir, classnames, flags.clip, rows)
    top = min(flags.top, len(predictor.classnames))
    answers = []
    with contextlib.ExitStack() as stack:
        table, bar = None, None
        if flags.csv:
            from dpt_jax.report.tables import inert

            table = csv.writer(stack.enter_context(text_stream(as_path(flags.csv))))
            best = [f"{name}_{i + 1}" for i in range(top) for name in ("class", "probability")]
            table.writerow(["path", "error", *best])
        # On a terminal, a bar would mix with the lines, which show the progress too.
        if flags.csv or flags.json or not sys.stdout.isatty():
            bar = stack.enter_context(Progress("predict", len(paths), file=sys.stderr))
        for answer in _classify(predictor, paths, top):
            answers.append(answer)
            if table:
                cells = [cell for name, p in answer.classes for cell in (name, f"{p:.6f}")]
                table.writerow(map(inert, [answer.path, answer.error, *cells]))
            elif not (flags.json or answer.error):
                said = "  ".join(f"{name} {100 * p:.1f} %" for name, p in answer.classes)
                print(f"{answer.path}  {said}", flush=True)
            if bar:
                bar.advance()
    readable = [answer for answer in answers if not answer.error]
    if flags.json:
        rows_of_json = (f"  {json.dumps(answer.as_json())}" for answer in answers)
        print("[", ",\n".join(rows_of_json), "]", sep="\n")
    if flags.csv:
        print(f"written to {flags.csv}: {len(readable)} images")
    if not readable:
        raise UserError(f"none of the {len(paths)} images could be read.")
    if failed := len(paths) - len(readable):
        print(f"{failed} of {len(paths)} images could not be read.", file=sys.stderr)
    named = [(class_name(pathlib.PurePath(one.path).parent.name), one) for one in readable]
    hits = [name == one.classes[0][0] for name, one in named if name in predictor.classnames]
    if hits:
        print(
            f"{100 * sum(hits) / len(hits):.1f} % of {len(hits)} images in folders that are named "
            "as classes are right.",
            file=sys.stderr,
        )


def _classify(predictor: "Predictor", paths: Sequence[str], top: int) -> Iterator[Answer]:
    """Yield the answers for all images; print why one cannot be read."""
    import numpy as np

    from dpt_jax.data.records import UnreadableImageError, read_image
    from dpt_jax.evaluation.metrics import softmax

    failed: dict[str, str] = {}

    def read(path: str) -> "Image.Image":
        try:
            return read_image(path)
        except UnreadableImageError as reason:
            failed[path] = str(reason)
            raise

    for batch, outputs in predictor.answers(paths, read, skip_unreadable=True):
        probabilities = softmax(outputs.logits)
        best = np.argsort(-probabilities, axis=-1, kind="stable")[:, :top]
        for index, own, order in zip(batch["index"], probabilities, best, strict=True):
            path = paths[index]
            if error := failed.get(path, ""):
                print(error, file=sys.stderr, flush=True)
            classes = [(predictor.classnames[c], float(own[c])) for c in order]
            yield Answer(path, [] if error else classes, error)
