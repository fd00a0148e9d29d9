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
from typing import TYPE_CHECKING, NamedTuple

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
    # Importing JAX takes seconds, so wrong paths are reported before.
    from dpt_jax.io import as_path
    from dpt_jax.predictor.predictor import load, read_classnames

    classnames = read_classnames(as_path(flags.classes)) if flags.classes else None
    # A power of two: small for few images, and one compiled program serves many calls.
    rows = min(1 << (len(paths) - 1).bit_length(), BATCH)
    predictor = load(workdir, classnames, flags.clip, rows)
    top = min(flags.top, len(predictor.classnames))
    # On a terminal, a bar would mix with the answers, which show the progress too.
    shows_bar = not sys.stdout.isatty() or flags.csv or flags.json
    failed: dict[str, str] = {}
    hits: list[bool] = []
    answers = _scored(_classify(predictor, paths, top, failed, shows_bar), predictor, hits)
    if flags.csv:
        _write_csv(answers, flags.csv, top)
        print(f"written to {flags.csv}: {len(paths) - len(failed)} images")
    elif flags.json:
        _print_json(answers)
    else:
        _print_lines(answers)
    if len(failed) == len(paths):
        raise UserError(f"none of the {len(paths)} images could be read.")
    if failed:
        print(f"{len(failed)} of {len(paths)} images could not be read.", file=sys.stderr)
    if hits:
        print(
            f"{100 * sum(hits) / len(hits):.1f} % of {len(hits)} images in folders that are named "
            "as classes are right.",
            file=sys.stderr,
        )


def _scored(
    answers: Iterator[Answer], predictor: "Predictor", hits: list[bool]
) -> Iterator[Answer]:
    """Yield the answers; add to `hits` whether those in a folder named as a class are right."""
    from dpt_jax.data.folder import class_name

    for answer in answers:
        named = class_name(pathlib.PurePath(answer.path).parent.name)
        if answer.classes and named in predictor.classnames:
            hits.append(answer.classes[0][0] == named)
        yield answer


def _classify(
    predictor: "Predictor", paths: Sequence[str], top: int, failed: dict[str, str], shows_bar: bool
) -> Iterator[Answer]:
    """Yield the answers for all images; print why one cannot be read, and add that to `failed`."""
    import numpy as np

    from dpt_jax.data.records import UnreadableImageError, read_image
    from dpt_jax.evaluation.metrics import softmax
    from dpt_jax.io import as_path
    from dpt_jax.logging import Progress

    def read(path: str) -> "Image.Image":
        try:
            return read_image(as_path(path))
        except UnreadableImageError as reason:
            failed[path] = str(reason)
            raise

    with contextlib.ExitStack() as stack:
        bar = None
        if shows_bar:
            steps = -(-len(paths) // predictor.rows)
            bar = stack.enter_context(Progress("predict", steps, file=sys.stderr))
        for batch, outputs in predictor.answers(paths, read, skip_unreadable=True):
            probabilities = softmax(outputs.logits)
            best = np.argsort(-probabilities, axis=-1, kind="stable")[:, :top]
            for index, own, order in zip(batch["index"], probabilities, best, strict=True):
                path = paths[index]
                error = failed.get(path, "")
                if error:
                    print(error, file=sys.stderr, flush=True)
                classes = [(predictor.classnames[c], float(own[c])) for c in order]
                yield Answer(path, [] if error else classes, error)
            if bar:
                bar.advance()


def _print_lines(answers: Iterator[Answer]) -> None:
    """Print a line for each image."""
    for path, classes, error in answers:
        if not error:
            said = "  ".join(f"{name} {100 * p:.1f} %" for name, p in classes)
            print(f"{path}  {said}", flush=True)


def _print_json(answers: Iterator[Answer]) -> None:
    """Print one list, image by image."""
    before = "["
    for path, classes, error in answers:
        predictions = [{"class": name, "probability": p} for name, p in classes]
        answer = {"path": path, **({"error": error} if error else {"predictions": predictions})}
        print(before, json.dumps(answer), sep="\n  ", end="", flush=True)
        before = ","
    print("\n]", flush=True)


def _write_csv(answers: Iterator[Answer], name: str, top: int) -> None:
    """Write a table, image by image."""
    from dpt_jax.io import as_path, text_stream
    from dpt_jax.report.tables import inert

    with text_stream(as_path(name)) as out:
        table = csv.writer(out)
        columns = [f"{column}_{i + 1}" for i in range(top) for column in ("class", "probability")]
        table.writerow(["path", "error", *columns])
        for path, classes, error in answers:
            cells = [cell for class_, p in classes for cell in (class_, f"{p:.6f}")]
            table.writerow(map(inert, [path, error, *cells]))
