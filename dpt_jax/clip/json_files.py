"""JSON files of other people's models, whose every value is checked before it is used."""

import codecs
import json
import math
from collections.abc import Collection, Mapping
from typing import Any

from etils import epath

from dpt_jax.errors import UserError

LFS_POINTER = b"version https://git-lfs"
# What a file that is not what its name says often begins with.
_OTHERS = {
    LFS_POINTER: "is a pointer of Git LFS, not the file itself: run `git lfs pull` in its folder",
    b"<": "is an HTML or XML page: the download went wrong, so get it again",
}


def say_if_other(file: epath.Path, start: bytes) -> None:
    """Raise UserError where the first bytes of a file are those of an LFS pointer or a page."""
    start = start.removeprefix(codecs.BOM_UTF8).lstrip()
    for begins, what in _OTHERS.items():
        if start.startswith(begins):
            raise UserError(f"{file} {what}.")


def read_text(file: epath.Path) -> str:
    """Return the text of a UTF-8 file, without a byte order mark.

    Raise UserError for a file that is missing, an LFS pointer, a page or no such text.
    """
    try:
        data = file.read_bytes()
    except OSError as reason:
        raise UserError(f"{file} cannot be read ({reason.strerror or reason}).") from reason
    say_if_other(file, data[:100])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as reason:
        raise UserError(
            f"{file} cannot be read as text ({reason}): it is damaged, or not saved as UTF-8."
        ) from reason


def parse_json(text: str, file: epath.Path) -> "Section":
    """Return the object of a JSON text.  Raise UserError, which names the file, for other texts."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as reason:
        raise UserError(f"{file} is not valid JSON ({reason}): it is damaged or cut.") from reason
    if not isinstance(value, dict):
        raise UserError(f"{file} holds {_kind(value)}, where a JSON object is expected.")
    return Section(value, file)


def read_json(file: epath.Path) -> "Section":
    """Return the object of a JSON file.  Raise UserError, which names the file, for other files."""
    return parse_json(read_text(file), file)


class Section:
    """An object of a JSON file, whose values are asked for by type.

    Every method raises UserError that names the file and the key where the
    value is of another type, or out of range.
    """

    def __init__(self, values: Mapping[str, Any], file: epath.Path, name: str = "") -> None:
        self.values, self.file, self.name = values, file, name
        self._asked: set[str] = set()

    def has(self, key: str) -> bool:
        """Return whether the key is there with a value other than null."""
        return self.values.get(key) is not None

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value as it is."""
        self._asked.add(key)
        return self.values.get(key, default)

    def section(self, key: str) -> "Section":
        """Return the object of a key; one without values where the key is missing or null."""
        value = self.get(key)
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            raise self.error(key, "an object")
        return Section(value, self.file, f"{self.name}{key}.")

    def whole(self, key: str, default: int | None = None, least: int = 1) -> int:
        """Return a whole number of at least `least`."""
        value = self.get(key, default)
        if not _is_whole(value) or value < least:
            raise self.error(key, f"a whole number of at least {least}")
        return value

    def side(self, key: str, default: int | None = None) -> int:
        """Return the side of a square, which may be written as a number or as a pair."""
        value = self.get(key, default)
        pair = value if isinstance(value, list) and len(value) == 2 else [value, value]
        if not all(_is_whole(side) and side > 0 for side in pair):
            raise self.error(key, "a whole number above 0 (or two of them)")
        if pair[0] != pair[1]:
            raise self.error(key, "a square")
        return pair[0]

    def number(self, key: str, default: float | None = None) -> float:
        """Return a finite number above 0."""
        value = self.get(key, default)
        if not _is_number(value) or value <= 0:
            raise self.error(key, "a number above 0")
        return float(value)

    def channels(self, key: str, default: tuple[float, ...], positive: bool = False) -> Any:
        """Return three finite numbers, one a channel; one number stands for three."""
        value = self.get(key)
        value = list(default) if value is None else value
        value = [value] * 3 if _is_number(value) else value
        good = isinstance(value, list) and len(value) == 3 and all(map(_is_number, value))
        if not good or (positive and min(value) <= 0):
            raise self.error(key, f"three numbers{' above 0' * positive}, one a channel")
        return tuple(map(float, value))

    def flag(self, key: str, default: bool = False) -> bool:
        """Return true or false; null is the default."""
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value

    def choice(self, key: str, choices: Collection[str], default: str | None = None) -> str:
        """Return one of some words."""
        value = self.get(key, default)
        if not isinstance(value, str) or value not in choices:
            raise self.error(key, f"one of {', '.join(choices)}")
        return value

    def left(self) -> dict[str, Any]:
        """Return the values that nobody has asked for."""
        return {k: v for k, v in self.values.items() if k not in self._asked}

    def error(self, key: str, wanted: str) -> UserError:
        """Return the error of a key whose value is not what is wanted."""
        there = f"is {_shown(self.values[key])}" if key in self.values else "is missing"
        return UserError(f"{self.file}: {self.name}{key} {there}, where {wanted} is expected.")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value < 2**31


def _is_number(value: Any) -> bool:
    """Return whether the value is a number that a float32 can hold."""
    good = isinstance(value, int | float) and not isinstance(value, bool)
    return good and -1e38 < value < 1e38 and math.isfinite(value)


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
