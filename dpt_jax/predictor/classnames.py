"""Class names that replace those of the training."""

import re
from collections.abc import Iterable

from etils import epath

from dpt_jax.errors import UserError, can_be_shown
from dpt_jax.io import reading


def check_classnames(classnames: Iterable[str], source: str) -> list[str]:
    """Return the names as a list.

    Raises:
      UserError: There is none, or one is blank or occurs twice. It begins with `source`.
    """
    if isinstance(classnames, str):
        raise UserError(f"{source} is {classnames!r}: give a list of names.")
    names: dict[str, None] = {}
    for name in classnames:
        if not isinstance(name, str) or not name.strip() or not can_be_shown(name):
            raise UserError(f"{source}: {name!r} is not a class name.")
        if name in names:
            raise UserError(f"{source} has {name!r} twice: remove one, or rename it.")
        names[str(name)] = None  # also a string of NumPy's
    if not names:
        raise UserError(f"{source} has no class name: give at least one.")
    return list(names)


def read_classnames(file: epath.Path) -> list[str]:
    """Return the class names of a text file, one a line.

    CoOp's lists of ImageNet have the WordNet id before each name. Raise UserError, see
    `check_classnames`.
    """
    with reading(file, "a list of class names"):
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    names = [line.strip() for line in lines if line.strip()]
    with_ids = [re.fullmatch(r"n\d{8}\s+(.+)", name) for name in names]
    if all(with_ids):
        names = [found[1] for found in with_ids if found]
    return check_classnames(names, str(file))
