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
    """Return the content of a descriptions file; what begins with { already is content.

    Raises:
      UserError: It cannot be read, see `parse`.
    """
    if not given or given.lstrip().startswith("{"):
        return given
    file = as_path(given)
    with reading(file, KIND):
        texts = parse(file.read_text(encoding="utf-8-sig"), given)
    return json.dumps(texts, sort_keys=True)


def parse(content: str, source: str = "dataset.descriptions") -> dict[str, list[str]]:
    """Return the texts of each class.

    Raises:
      UserError: It is not JSON of this kind, a class is in it twice, or has no text.
    """

    def no_class_twice(pairs: list[tuple[str, list[str]]]) -> dict[str, list[str]]:
        texts = dict(pairs)
        if len(texts) < len(pairs):
            raise ValueError("a class is in it twice")
        return texts

    with reading(source, KIND):
        texts: dict[str, list[str]] = json.loads(content, object_pairs_hook=no_class_twice)
        for name, own in texts.items():
            strings = isinstance(own, list) and all(isinstance(x, str) and x.strip() for x in own)
            if not own or not strings:
                raise TypeError(f"{name!r} has no list of texts, or an empty one")
    return texts


def texts_of(content: str, classnames: Sequence[str]) -> list[list[str]]:
    """Return the texts of each of these classes.  Raise UserError if one has none."""
    texts = parse(content)
    for name in classnames:
        if name not in texts:
            near = "".join(f" It has {x!r}." for x in difflib.get_close_matches(name, texts, 1))
            raise UserError(
                f"dataset.descriptions has no text for class {name!r}: add one, or leave out the "
                f"descriptions.{near}"
            )
    return [texts[name] for name in classnames]


def digest(content: str) -> str:
    """Return a short digest for results, "" without descriptions."""
    return hashlib.sha256(content.encode()).hexdigest()[:8] if content else ""
