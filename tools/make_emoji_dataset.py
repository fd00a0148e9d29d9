"""Writes the bundled few-shot data sets: emoji drawings, sorted into subcategories.

    python tools/make_emoji_dataset.py node_modules/emoji-datasource-twitter FOLDER
    python tools/make_emoji_dataset.py node_modules/emoji-datasource-google FOLDER

The result is a folder data set, {train,test}/CLASS/NAME.png, and its NOTICE.md.
Google's drawings, for testing only, are of the same emoji as Twitter's test drawings.
"""

import argparse
import pathlib
import re
import sys

# A script's import path begins in its own folder, not at the repository's root.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image

from dpt_jax.errors import UserError
from tools.emoji_names import DATASET_CLASSES, Emoji, read_emoji

MOST_TEST_IMAGES, LEAST_TRAIN_IMAGES, MOST_TRAIN_IMAGES = 25, 8, 16
RIGHTS = {
    "twitter": """\
The images in `train/` and `test/` are Twemoji graphics, Copyright Twitter, Inc and
other contributors, licensed under CC BY 4.0
(https://creativecommons.org/licenses/by/4.0/).

Source: the 64-pixel PNG files of the npm package emoji-datasource-twitter 16.0.0
(https://github.com/iamcal/emoji-data), which were made from Twemoji 16.0.1
(https://github.com/jdecked/twemoji).""",
    "google": """\
The images in `test/` are Noto Emoji graphics, Copyright Google LLC, licensed under
the Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0).

Source: the 64-pixel PNG files of the npm package emoji-datasource-google 16.0.0
(https://github.com/iamcal/emoji-data), which were made from Noto Emoji
(https://github.com/googlefonts/noto-emoji).""",
}
NOTICE = """\
# Emoji drawings

{rights} Names and subcategories come from that
package's emoji.json (MIT licence, Copyright (c) 2013 Cal Henderson).

Changes: rasterised to 64 x 64 pixels, transparency composited on white and stored
as RGB, a selection of the emoji sorted into one folder per subcategory and
divided at random into train and test. `tools/make_emoji_dataset.py` made them.
"""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "package", help="the unpacked npm package emoji-datasource-twitter or -google"
    )
    parser.add_argument("target", help="the folder to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random splits")
    options = parser.parse_args(arguments)
    try:
        counts = make_dataset(options.package, pathlib.Path(options.target), options.seed)
    except UserError as reason:
        print(reason, file=sys.stderr)
        raise SystemExit(2) from None
    for name, (train, test) in counts.items():
        print(f"{name:20} {train:3} train {test:3} test")
    train, test = (sum(numbers) for numbers in zip(*counts.values(), strict=True))
    print(f"{len(counts)} classes, {train} train and {test} test images in {options.target}")


def make_dataset(package: str, target: pathlib.Path, seed: int) -> dict[str, tuple[int, int]]:
    """Write the folders; return {class folder: (train images, test images)}."""
    for split in ("train", "test"):
        if (target / split).exists():
            raise UserError(
                f"{target / split} already exists: delete it first, or choose a new folder."
            )
    image_set = "google" if pathlib.Path(package).name.endswith("google") else "twitter"
    emoji = read_emoji(package, image_set)
    generator = np.random.default_rng(seed)
    counts = {}
    for subcategory, words in sorted(DATASET_CLASSES.items(), key=lambda item: item[1]):
        members = [e for e in emoji if e.subcategory == subcategory]
        members = [members[i] for i in generator.permutation(len(members))]
        # Images that few shots do not need are for testing.
        train = int(np.clip(len(members) - MOST_TEST_IMAGES, LEAST_TRAIN_IMAGES, MOST_TRAIN_IMAGES))
        splits = {"train": members[:train], "test": members[train : train + MOST_TEST_IMAGES]}
        if not splits["test"]:
            raise UserError(
                f"{package} has only {len(members)} images of {subcategory}; "
                f"{train + 1} are needed."
            )
        if image_set == "google":
            splits["train"] = []
        folder = words.replace(" ", "_")
        for split, chosen in splits.items():
            if chosen:
                write_images(chosen, target / split / folder)
        counts[folder] = (len(splits["train"]), len(splits["test"]))
    (target / "NOTICE.md").write_text(NOTICE.format(rights=RIGHTS[image_set]), encoding="utf-8")
    return counts


def write_images(emoji: list[Emoji], folder: pathlib.Path) -> None:
    """Write the drawings on white as RGB PNG files, named by their short names in ASCII."""
    folder.mkdir(parents=True)
    for one in emoji:
        drawing = Image.open(one.image).convert("RGBA")
        flat = Image.alpha_composite(Image.new("RGBA", drawing.size, "white"), drawing).convert(
            "RGB"
        )
        name = re.sub(r"[^a-z0-9]+", "_", one.short_name.lower()).strip("_")
        file = folder / f"{name}.png"
        if file.exists():
            raise UserError(f"{file}: two emoji have this name.")
        flat.save(file, optimize=True)


if __name__ == "__main__":
    main()
