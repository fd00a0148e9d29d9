"""Writes the bundled dataset of handwritten digits, from scikit-learn's copy of them.

    python tools/make_digits_dataset.py FOLDER

The result is a folder dataset, {train,val,test}/CLASS/NUMBER.png, and its NOTICE.md. A number is
that of the scan in scikit-learn's `load_digits`.
"""

import argparse
import pathlib
import sys

# A script's import path begins in its own folder, not at the repository's root.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image

from dpt_jax.errors import UserError

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# The shots are drawn from the first. Settings are chosen on the second, and measured on the rest.
TRAIN, VAL = 600, 400
MOST_INK = 16
NOTICE = """\
# Handwritten digits

The images are the test set of E. Alpaydin and C. Kaynak, "Optical Recognition of
Handwritten Digits", UCI Machine Learning Repository, 1998
(https://doi.org/10.24432/C50P49), licensed under CC BY 4.0
(https://creativecommons.org/licenses/by/4.0/).

Source: `load_digits` of scikit-learn.

Changes: the 17 steps of ink of each scan of 8 x 8 pixels became 8-bit greys, dark on
white, stored as PNG in one folder per digit and divided at random into train, val and
test. `tools/make_digits_dataset.py` made them.
"""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", help="the folder to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random splits")
    options = parser.parse_args(arguments)
    from sklearn.datasets import load_digits

    scans = load_digits()
    try:
        counts = make_dataset(
            scans.images, scans.target, pathlib.Path(options.target), options.seed
        )
    except UserError as reason:
        print(reason, file=sys.stderr)
        raise SystemExit(2) from None
    words = ", ".join(f"{count} {split}" for split, count in counts.items())
    print(f"{len(CLASSES)} classes, {words} images in {options.target}")


def make_dataset(
    scans: np.ndarray, digits: np.ndarray, target: pathlib.Path, seed: int
) -> dict[str, int]:
    """Write the folders; return {split: images}.

    scans: (N, 8, 8), ink from 0 to 16. digits: (N,). Raise UserError if the target has images.
    """
    if (target / "train").exists():
        raise UserError(
            f"{target / 'train'} already exists: delete it first, or choose a new folder."
        )
    order = np.random.default_rng(seed).permutation(len(scans))
    parts = np.split(order, [TRAIN, TRAIN + VAL])
    splits = dict(zip(("train", "val", "test"), parts, strict=True))
    for split, numbers in splits.items():
        for number in numbers:
            folder = target / split / CLASSES[digits[number]]
            folder.mkdir(parents=True, exist_ok=True)
            paper = np.round(255 * (1 - scans[number] / MOST_INK)).astype(np.uint8)
            Image.fromarray(paper).save(folder / f"{number:04}.png", optimize=True)
    (target / "NOTICE.md").write_text(NOTICE, encoding="utf-8")
    return {split: len(numbers) for split, numbers in splits.items()}


if __name__ == "__main__":
    main()
