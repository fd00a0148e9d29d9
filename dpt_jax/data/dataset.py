"""A dataset as lists of paths and labels, whatever it came from."""

import pathlib
from typing import NamedTuple

from ml_collections import ConfigDict

from dpt_jax.data import sampling
from dpt_jax.data.sampling import Example
from dpt_jax.errors import UserError

BUNDLED = pathlib.Path(__file__).parent.parent / "assets"
CLASS_CHOICES = ("all", "base", "new")
EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"}


class Dataset(NamedTuple):
    """Images of C classes: `train` is the few-shot sample, `test` the whole test split."""

    root: pathlib.Path
    classnames: tuple[str, ...]
    train: list[Example]
    test: list[Example]


def load_dataset(config: ConfigDict, seed: int) -> Dataset:
    """The dataset that config.dataset names, its few-shot sample drawn with `seed`.

    Raises UserError where the folder, a split or a class is not as it should be.
    """
    if config.source != "folder":
        raise UserError(f"dataset.source: {config.source!r} is not supported; the source that is: 'folder'.")
    if config.classes not in CLASS_CHOICES:
        raise UserError(f"dataset.classes: {config.classes!r} is not one of {', '.join(CLASS_CHOICES)}.")
    if config.shots == 0 or config.shots < -1:
        raise UserError(f"dataset.shots is {config.shots}: give a positive number, or -1 for all images.")
    if not config.root and config.name != "emoji":
        raise UserError(
            "dataset.root is not set: give the folder that holds train/ and test/, --config.dataset.root=DIR."
        )
    whole = read_folder(pathlib.Path(config.root) if config.root else BUNDLED / "emoji")
    # The shots are drawn before the classes are split, so that both halves are of one sample.
    train, _ = sampling.few_shot(whole.train, [], config.shots, seed)
    if config.classes == "all":
        return whole._replace(train=train)
    labels = list(sampling.half_of_classes(len(whole.classnames), config.classes))
    if not labels:
        raise UserError(f"{whole.root} has one class, so there is no {config.classes!r} half of its classes.")
    first = labels[0]
    return Dataset(
        root=whole.root,
        classnames=tuple(whole.classnames[label] for label in labels),
        train=[Example(e.path, e.label - first) for e in train if e.label in labels],
        test=[Example(e.path, e.label - first) for e in whole.test if e.label in labels],
    )


def read_folder(root: pathlib.Path) -> Dataset:
    """train/CLASS/IMAGE and test/CLASS/IMAGE; class order is that of the sorted folder names.

    train/ may be missing, for a dataset that is only evaluated on.
    """
    if not root.is_dir():
        raise UserError(f"dataset.root: {root} is not a folder; it should hold train/CLASS/ and test/CLASS/ folders.")
    if not (root / "test").is_dir():
        raise UserError(
            f"dataset.root: {root} has no test/ folder; it should hold train/CLASS/ and test/CLASS/ folders."
        )
    splits = [root / split for split in ("train", "test") if (root / split).is_dir()]
    folders = sorted({f.name for split in splits for f in split.iterdir() if f.is_dir() and not f.name.startswith(".")})
    if not folders:
        raise UserError(f"dataset.root: {root} has no class folders in train/ or test/.")

    def images(split: str, label: int, folder: str) -> list[Example]:
        directory = root / split / folder
        if not directory.is_dir():
            return []
        found = sorted(f.name for f in directory.iterdir() if f.suffix.lower() in EXTENSIONS and f.is_file())
        if not found:
            raise UserError(
                f"{directory} holds no images ({', '.join(sorted(EXTENSIONS))}); add some or remove the folder."
            )
        return [Example(f"{split}/{folder}/{name}", label) for name in found]

    train, test = (
        [example for label, folder in enumerate(folders) for example in images(split, label, folder)]
        for split in ("train", "test")
    )
    if not test:
        raise UserError(f"{root / 'test'} holds no class folders with images.")
    return Dataset(root, tuple(folder.replace("_", " ") for folder in folders), train, test)
