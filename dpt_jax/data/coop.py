"""The published datasets in the directory layout of CoOp's DATASETS.md.

Images as distributed and the published `split_zhou_*.json`. If that file is missing, a split is
made from the raw download by the rule that made it.
"""

import json
import pathlib
from collections.abc import Sequence

from etils import epath

from dpt_jax.data.benchmark import Benchmark, Lists, Record, text
from dpt_jax.data.catalogue import CATALOGUE
from dpt_jax.data.folder import visible
from dpt_jax.data.records import Dataset, Example, Files
from dpt_jax.errors import UserError, can_be_shown
from dpt_jax.io import as_path, reading
from dpt_jax.logging import say

LAYOUT = (
    "see CoOp's DATASETS.md (github.com/KaiyangZhou/CoOp) for where to get it and how to lay it out"
)


def read_coop(name: str, root: epath.PathLike, skip_missing: bool = False) -> Dataset:
    """Return a dataset below the common root. Its paths are relative to that root.

    Args:
        name: of the dataset in the catalogue.
        root: the folder that has the dataset's own directory.
        skip_missing: do not check whether every listed image exists.

    Raises:
        UserError: a directory, file, image or class is missing. The message names it.
    """
    benchmark, root = CATALOGUE[name], as_path(root)
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
    return Dataset(Files(root, upright=False), _class_names(lists, directory), train, val, test)


def _lists(benchmark: Benchmark, directory: epath.Path, images: epath.Path) -> Lists:
    if not benchmark.split:
        return benchmark.read_raw(directory, images)
    file = directory / benchmark.split
    if file.is_file():
        with reading(file, "JSON with train, val and test lists of [path, label, class name]"):
            content = json.loads(text(file))
            return Lists(*([_record(*entry) for entry in content[s]] for s in Lists._fields))
    try:
        lists = benchmark.read_raw(directory, images)
    except UserError as reason:
        raise UserError(
            f"{file} is not there, and no split can be made without it: {reason} For the layout, "
            f"{LAYOUT}."
        ) from reason
    say(f"{file} is not there: using a split made by the same rule, so not the published images.")
    return lists


def _record(path: str, label: int, classname: str) -> Record:
    if not isinstance(path, str) or not isinstance(classname, str) or isinstance(label, float):
        raise TypeError(f"[{path!r}, {label!r}, {classname!r}] is not [path, label, class name]")
    return Record(path, int(label), classname)


def _check_paths(directory: epath.Path, records: Sequence[Record]) -> None:
    """Raise UserError for a path that leads out of the dataset or is not a path."""
    for record in records:
        path = pathlib.PurePosixPath(record.path)
        if (
            not path.name
            or path.is_absolute()
            or ".." in path.parts
            or not can_be_shown(record.path)
        ):
            raise UserError(
                f"{directory} lists {record.path!r}, which is not a path in the dataset; download "
                "its lists again."
            )


def _class_names(lists: Lists, directory: epath.Path) -> tuple[str, ...]:
    """Return names in label order, as the training images have them, if there are any."""
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
    """Raise UserError if a listed image is missing.

    Each folder is listed once, which is faster than to ask for each file.
    """
    there: dict[str, set[str]] = {}
    missing = []
    for record in records:
        folder, _, name = record.path.rpartition("/")
        if folder not in there:
            path = images / folder
            own = visible(path, dangling=False) if path.is_dir() else []
            there[folder] = {entry for entry, _ in own}
        if name not in there[folder]:
            missing.append(images / record.path)
    if missing:
        others = f", nor are {len(missing) - 1} more listed images" if len(missing) > 1 else ""
        raise UserError(
            f"{missing[0]} is not there{others}: complete the download, or leave missing images "
            "out with --config.dataset.on_error=skip."
        )
