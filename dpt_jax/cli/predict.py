"""Classify images with a trained prompt.

    dpt-jax predict W PATH… [--top=5] [--json | --csv=FILE] [--classes=FILE] [--clip=WEIGHTS]

W is a workdir, or a prompt file of `dpt-jax convert export`. PATH is an image, a folder (with the
images in it) or a pattern such as 'photos/**/*.jpg'. Images that cannot be read are reported, and
the others are classified. If their folders are named after classes, the accuracy is printed on
standard error. --json writes one list to standard output; --classes=FILE takes other class
names, one per line.
"""

import argparse
import contextlib
import csv
import io
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dpt_jax import cli
from dpt_jax.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from dpt_jax.predictor import Predictor

BATCH = 128  # images that a device takes at a time, at most

# An object of --json: an image's path with its likeliest classes and their probabilities, or why it
# cannot be read.
Answer = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    cli.add_run(parser, images=True)
    cli.add_top(parser, 5, "classes per image")
    parser.add_argument("--classes", metavar="FILE", help="other class names, one per line")
    parser.add_argument("--json", action="store_true", help="write a JSON list to standard output")
    parser.add_argument("--csv", metavar="FILE", help="write a table to this file")


def run(flags: argparse.Namespace) -> None:
    if flags.json and flags.csv:
        raise UserError("give --json or --csv, not both.")
    from dpt_jax.data.folder import class_name, find_images

    paths = find_images(flags.images)
    # Importing JAX takes seconds, so wrong paths are reported before.
    from dpt_jax.io import as_path
    from dpt_jax.logging import Progress
    from dpt_jax.predictor import load, read_classnames

    classnames = read_classnames(as_path(flags.classes)) if flags.classes else None
    # A power of two: small for few images, and one compiled program serves many calls.
    rows = min(1 << (len(paths) - 1).bit_length(), BATCH)
    predictor = load(as_path(flags.workdir), classnames, flags.clip, rows)
    top = min(flags.top, len(predictor.classnames))
    readable, hits = 0, list[bool]()
    # Answers are written one by one, so that those before a kill are not lost.
    with contextlib.ExitStack() as stack:
        table, answers = None, _classify(predictor, paths, top)
        if flags.csv:
            from dpt_jax.report import inert

            file = stack.enter_context(as_path(flags.csv).open("wb"))
            # Names of files need not be Unicode.
            text = io.TextIOWrapper(file, "utf-8", "backslashreplace", "", line_buffering=True)
            table = csv.writer(stack.enter_context(text))
            columns = [f"{name}_{i + 1}" for i in range(top) for name in ("class", "probability")]
            table.writerow(["path", "error", *columns])
        # On a terminal, lines show the progress.
        if flags.csv or flags.json or not sys.stdout.isatty():
            bar = stack.enter_context(Progress("predict", len(paths), file=sys.stderr))
            answers = bar.track(answers)
        for number, answer in enumerate(answers):
            best = [(one["class"], one["probability"]) for one in answer.get("predictions", ())]
            if flags.json:
                before = ",\n  " if number else "[\n  "
                print(before, json.dumps(answer), sep="", end="", flush=True)
            elif table:
                cells = [cell for name, p in best for cell in (name, f"{p:.6f}")]
                table.writerow(map(inert, [answer["path"], answer.get("error", ""), *cells]))
            elif best:
                shown = "  ".join(f"{name} {100 * p:.1f} %" for name, p in best)
                print(f"{answer['path']}  {shown}", flush=True)
            if best:
                readable += 1
                folder = class_name(pathlib.PurePath(answer["path"]).parent.name)
                if folder in predictor.classnames:
                    hits.append(folder == best[0][0])
            else:
                print(answer["error"], file=sys.stderr, flush=True)
    if flags.json:
        print("\n]", flush=True)
    if not readable:
        raise UserError(f"none of the {len(paths)} images could be read.")
    if flags.csv:
        print(f"written to {flags.csv}: {readable} images")
    if failed := len(paths) - readable:
        print(f"{failed} of {len(paths)} images could not be read.", file=sys.stderr)
    if hits:
        print(
            f"{100 * sum(hits) / len(hits):.1f} % of {len(hits)} images in folders named after "
            "classes are right.",
            file=sys.stderr,
        )


def _classify(predictor: "Predictor", paths: Sequence[str], top: int) -> Iterator[Answer]:
    """Yield the answers for all images."""
    import numpy as np

    from dpt_jax.data.records import UnreadableImageError, read_image
    from dpt_jax.evaluation.results import softmax

    failed: dict[str, str] = {}

    def read(path: str) -> "Image.Image":
        try:
            return read_image(path)
        except UnreadableImageError as reason:
            failed[path] = str(reason)
            raise

    for batch, outputs in predictor.answers(paths, read, skip_unreadable=True):
        for index, own in zip(batch["index"], softmax(outputs.logits), strict=True):
            path, best = paths[index], np.argsort(-own, kind="stable")[:top]
            classes = [
                {"class": predictor.classnames[c], "probability": float(own[c])} for c in best
            ]
            found = {"error": failed[path]} if path in failed else {"predictions": classes}
            yield {"path": path, **found}
