"""The datasets of the paper in the directory layout that CoOp's DATASETS.md asks for.

Images as distributed and the published `split_zhou_*.json`; where such a file
is absent, a split made from the raw download by the rule that made it.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

from etils import epath

from dpt_jax.data.benchmark import Benchmark, Lists, Record
from dpt_jax.data.catalogue import CATALOGUE
from dpt_jax.data.listfiles import LAYOUT, read_json
from dpt_jax.data.listing import visible
from dpt_jax.data.records import Example, Files, Splits
from dpt_jax.errors import UserError, can_be_shown
from dpt_jax.io import as_path, listed_once
from dpt_jax.logging import say


def read_coop(name: str, root: epath.PathLike, skip_missing: bool = False) -> Splits:
    """Return the dataset `name` below the common root; paths are relative to that root.

    skip_missing: do not ask whether every image that is named is there.
    Raise UserError naming the directory, file or class that is missing.
    """
    benchmark, root = CATALOGUE[name], as_path(root)
    with listed_once(root / benchmark.directory):
        return _read_coop(benchmark, root, skip_missing)


def _read_coop(benchmark: Benchmark, root: epath.Path, skip_missing: bool) -> Splits:
    directory = root / benchmark.directory
    images = directory / benchmark.images
    for folder in (directory, images):
        if not folder.is_dir():
            raise UserError(f"{folder} is not there (dataset.root={root}); {LAYOUT}.")
    lists = _lists(benchmark, directory, images)
    _check_paths(directory, [record for records in lists for record in records])
    if not skip_missing:
        _check_files(images, [*lists.train, *lists.test])
    prefix = images.relative_to(root).as_posix()
    train, val, test = (
        [Example(f"{prefix}/{r.path}", r.label) for r in records] for records in lists
    )
    return Splits(Files(root), _class_names(lists, directory), train, val, test)


def _lists(benchmark: Benchmark, directory: epath.Path, images: epath.Path) -> Lists:
    if not benchmark.split:
        return benchmark.read_raw(directory, images)
    file = directory / benchmark.split
    if file.is_file():
        return _read_split(file)
    try:
        lists = benchmark.read_raw(directory, images)
    except UserError as reason:
        raise UserError(
            f"{file} is not there, and no split can be made without it: {reason}"
        ) from reason
    say(
        f"{file} is not there: going by a split made by the same rule, so not on the published "
        "images."
    )
    return lists


def _read_split(file: epath.Path) -> Lists:
    content = read_json(file)
    try:
        return Lists(*([_record(entry) for entry in content[split]] for split in Lists._fields))
    except (ValueError, KeyError, TypeError) as reason:
        raise UserError(
            f"{file} is not a split: it should be JSON with train, val and test lists of "
            f"[path, label, class name] ({type(reason).__name__}: {reason}); download it again."
        ) from reason


def _record(entry: Any) -> Record:
    """Return an entry of a split. Raise ValueError or TypeError where it is none."""
    path, label, classname = entry
    if not isinstance(path, str) or not isinstance(classname, str) or isinstance(label, float):
        raise TypeError(f"{entry!r} is not [path, label, class name]")
    return Record(path, int(label), classname)


def _check_paths(directory: epath.Path, records: Sequence[Record]) -> None:
    """Raise UserError for a path that leads out of the dataset or is none."""
    for record in records:
        path = pathlib.PurePosixPath(record.path)
        if path.is_absolute() or ".." in path.parts:
            raise UserError(
                f"{directory} lists {record.path!r}, which is outside the dataset; download its "
                "lists again."
            )
        if not path.name or not can_be_shown(record.path):
            raise UserError(
                f"{directory} lists {record.path!r}, which is no path; download its lists again."
            )


def _class_names(lists: Lists, directory: epath.Path) -> tuple[str, ...]:
    """Return names in label order, as the training images have them, if there are any.

    Raise UserError for a class without one.
    """
    named = {r.label: r.classname for records in lists for r in records}
    if not named:
        raise UserError(f"{directory} lists no images at all; download it again.")
    name_of = {r.label: r.classname for r in lists.train or lists.test}
    for label in range(min(0, *named), max(named) + 1):
        if label not in name_of or label < 0:
            name, split = named.get(label, f"number {label}"), "training" if lists.train else "test"
            raise UserError(
                f"{directory}: class {name!r} has no {split} images; "
                "repair the split or the folder."
            )
        if not name_of[label].replace("_", " ").strip():
            raise UserError(f"{directory}: the name of class number {label} is blank; repair it.")
    return tuple(name_of[label].replace("_", " ") for label in range(len(name_of)))


def _check_files(images: epath.Path, records: Sequence[Record]) -> None:
    """Raise UserError where a listed image is not there.

    Each folder is listed once, which is faster than a look at each file.
    """
    there: dict[str, set[str]] = {}
    missing = []
    for record in records:
        folder, _, name = record.path.rpartition("/")
        if folder not in there:
            path = images / folder
            own = visible(path, dangling=False) if path.is_dir() else []
            there[folder] = {entry.name for entry in own}
        if name not in there[folder]:
            missing.append(images / record.path)
    if missing:
        others = (
            f", nor are {len(missing) - 1} more images that the dataset's lists name"
            if len(missing) > 1
            else ""
        )
        raise UserError(
            f"{missing[0]} is not there{others}: complete the download, or leave missing images "
            "out with --config.dataset.on_error=skip."
        )
