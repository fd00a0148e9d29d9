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
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dpt_jax.cli import flags as shared
from dpt_jax.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from dpt_jax.predictor.predictor import Predictor

BATCH = 128  # images that a device takes at a time, at most

# An object of --json: an image's path with its likeliest classes and their probabilities, or why it
# cannot be read.
Answer = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_run(parser, images=True)
    shared.add_top(parser, 5, "classes per image")
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
    from dpt_jax.predictor.predictor import load, read_classnames

    classnames = read_classnames(as_path(flags.classes)) if flags.classes else None
    # A power of two: small for few images, and one compiled program serves many calls.
    rows = min(1 << (len(paths) - 1).bit_length(), BATCH)
    predictor = load(as_path(flags.workdir), classnames, flags.clip, rows)
    answers: list[Answer] = []
    hits: list[bool] = []
    with contextlib.ExitStack() as stack:
        # They are written at the end, also if that is an interruption.
        if flags.json:
            stack.callback(lambda: print(json.dumps(answers, indent=2), flush=True))
        if flags.csv:
            table = stack.enter_context(as_path(flags.csv).open("wb"))
            stack.callback(lambda: table.write(_csv(answers)))
        bar = None  # lines show the progress too
        if flags.json or flags.csv:
            bar = stack.enter_context(Progress("predict", len(paths), file=sys.stderr))
        for answer in _classify(predictor, paths, flags.top):
            answers.append(answer)
            if bar:
                bar.advance()
            if "error" in answer:
                print(answer["error"], file=sys.stderr, flush=True)
                continue
            best = [(one["class"], one["probability"]) for one in answer["predictions"]]
            folder = class_name(pathlib.PurePath(answer["path"]).parent.name)
            if folder in predictor.classnames:
                hits.append(folder == best[0][0])
            if not bar:
                shown = "  ".join(f"{name} {100 * p:.1f} %" for name, p in best)
                print(f"{answer['path']}  {shown}", flush=True)
    failed = sum("error" in answer for answer in answers)
    if failed == len(answers):
        raise UserError(f"none of the {failed} images could be read.")
    if flags.csv:
        print(f"written to {flags.csv}: {len(answers) - failed} images")
    if failed:
        print(f"{failed} of {len(answers)} images could not be read.", file=sys.stderr)
    if hits:
        print(
            f"{100 * sum(hits) / len(hits):.1f} % of {len(hits)} images in folders named after "
            "classes are right.",
            file=sys.stderr,
        )


def _csv(answers: Sequence[Answer]) -> bytes:
    """Return a row per image: path, error, and the likeliest classes with their probabilities."""
    import pandas as pd

    from dpt_jax.report.frame import csv_of

    rows = []
    for answer in answers:
        path = answer["path"].encode(errors="backslashreplace").decode()  # it need not be Unicode
        row = {"path": path, "error": answer.get("error", "")}
        for place, one in enumerate(answer.get("predictions", ()), 1):
            row |= {f"class_{place}": one["class"], f"probability_{place}": one["probability"]}
        rows.append(row)
    return csv_of(pd.DataFrame(rows), "%.6f")


def _classify(predictor: "Predictor", paths: Sequence[str], top: int) -> Iterator[Answer]:
    """Yield the answers for all images."""
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
        for index, own in zip(batch["index"], softmax(outputs.logits), strict=True):
            path, best = paths[index], np.argsort(-own, kind="stable")[:top]
            classes = [
                {"class": predictor.classnames[c], "probability": float(own[c])} for c in best
            ]
            found = {"error": failed[path]} if path in failed else {"predictions": classes}
            yield {"path": path, **found}
