"""dataset.descriptions: several texts of each class, from a JSON file.

A configuration holds the content of the file, so a run needs the file only once.
"""

import difflib
import hashlib
import json
from collections.abc import Sequence

from dpt_jax.errors import UserError
from dpt_jax.io import as_path, reading

KIND = "descriptions, {class name: [text, …]}"


def read(given: str) -> str:
    """Return the content of a file of descriptions.  Content, which begins with {, is returned.

    Raises:
      UserError: It cannot be read, see `parse`.
    """
    if not given or given.lstrip().startswith("{"):
        return given
    file = as_path(given)
    with reading(file, KIND):
        texts = _checked(file.read_text(encoding="utf-8-sig"))
    return json.dumps(texts, sort_keys=True)


def parse(content: str) -> dict[str, list[str]]:
    """Return the texts of each class.

    Raises:
      UserError: It is not JSON of this kind, a class is in it twice, or has no text.
    """
    with reading("dataset.descriptions", KIND):
        return _checked(content)


def texts_of(content: str, classnames: Sequence[str]) -> list[list[str]]:
    """Return the texts of each of these classes.  Raise UserError if one has none."""
    texts = parse(content)
    for name in classnames:
        if name not in texts:
            raise UserError(
                f"dataset.descriptions has no text for class {name!r}: add one, or leave out the "
                "descriptions."
            )
    return [texts[name] for name in classnames]


def digest(content: str) -> str:
    """Return a short digest for results, "" without descriptions."""
    return hashlib.sha256(content.encode()).hexdigest()[:8] if content else ""


def check_names(content: str, classnames: Sequence[str]) -> None:
    """Raise UserError if a name is not a class of the dataset, which has `classnames`."""
    for name in parse(content):
        if name not in classnames:
            near = difflib.get_close_matches(name, classnames, 1)
            raise UserError(
                f"dataset.descriptions: {name!r} is not a class of the dataset"
                f"{f'; did you mean {near[0]!r}?' if near else '.'}"
            )


def _checked(text: str) -> dict[str, list[str]]:
    def no_class_twice(pairs: list[tuple[str, list[str]]]) -> dict[str, list[str]]:
        texts = dict(pairs)
        if len(texts) < len(pairs):
            raise ValueError("a class is in it twice")
        return texts

    texts: dict[str, list[str]] = json.loads(text, object_pairs_hook=no_class_twice)
    for name, own in texts.items():
        if not isinstance(own, list) or not own:
            raise TypeError(f"{name!r} has no list of texts")
        if not all(isinstance(one, str) and one.strip() for one in own):
            raise TypeError(f"{name!r} has a text that is empty or not a string")
    return texts
