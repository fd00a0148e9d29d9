"""Names of classes that somebody gives, in place of those of the training."""

from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath

from dpt_jax.errors import UserError, can_be_shown
from dpt_jax.training.setup import Experiment


def check_bound(prepared: Experiment, classnames: Sequence[str], training: dict[str, Any]) -> None:
    """Raise UserError where the context is bound to other classes than these."""
    if prepared.model.prompts.class_specific and list(classnames) != training.get("classnames"):
        raise UserError(
            "this context is one for each class of its training, and means nothing for others."
        )


def check_classnames(classnames: Iterable[str], source: str) -> list[str]:
    """Return the names as a list.  Raise UserError where one is blank or given twice."""
    if isinstance(classnames, str):
        raise UserError(f"{source} is {classnames!r}: give a list of names.")
    names: dict[str, None] = {}
    for name in classnames:
        if not isinstance(name, str) or not name.strip() or not can_be_shown(name):
            raise UserError(f"{source}: {name!r} is no name of a class.")
        if name in names:
            raise UserError(f"{source} names {name!r} twice: remove one, or tell the two apart.")
        names[str(name)] = None  # also one of NumPy's strings
    if not names:
        raise UserError(f"{source} names no class: give at least one.")
    return list(names)


def read_classnames(file: epath.Path) -> list[str]:
    """Return the class names of a text file, one a line.

    Raise UserError, see check_classnames.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as reason:
        raise UserError(f"--classes: {file} cannot be read as text ({reason}).") from reason
    return check_classnames([line.strip() for line in lines if line.strip()], str(file))
