"""Reads the pickled samples of CoOp's layout without running anything that stands in them.

Python's own unpickler calls what a file names and sets aside as much memory as a
file asks for. This one carries out only the few instructions that such a sample
consists of, on strings, numbers, tuples, lists, dicts and records.
"""

import io
import pickletools
from typing import Any

# Where CoOp's code, and code that was made from it, have the class of the records.
RECORD_CLASSES = (
    "dassl.data.datasets.base_dataset Datum",
    "dassl.data.datasets Datum",
    "datasets.utils Datum",
)

CONSTANTS = (
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
)
PUT = ("BINPUT", "LONG_BINPUT")
GET = ("BINGET", "LONG_BINGET")


class _Mark:
    """Where on the stack the items of a list or dict begin."""


class _RecordClass:
    """Stands for the class of the records."""


class Record(dict[str, Any]):
    """The fields of one record, by name."""


MARK, RECORD_CLASS = _Mark(), _RecordClass()


class UnsafePickleError(ValueError):
    """A pickle that is damaged or holds something else than records."""


def read_records(content: bytes) -> Any:
    """Return what a pickle holds: Record objects, lists, dicts, strings and whole numbers.

    Raise UnsafePickleError for a pickle that is damaged or holds anything else.
    """
    try:
        return _Machine().run(content)
    except UnsafePickleError:
        raise
    except Exception as reason:  # of damaged instructions: too few values, a wrong kind, no memo
        raise UnsafePickleError(f"it is damaged: {type(reason).__name__}: {reason}") from reason


class _Machine:
    """Carries out the instructions of a pickle on a stack, with a memo of values by number."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, content: bytes) -> Any:
        # genops stops with an error where a length is beyond the end of the file.
        for code, argument, _ in pickletools.genops(io.BytesIO(content)):
            if code.name == "STOP":
                (value,) = self._stack
                if isinstance(value, _Mark | _RecordClass):
                    raise UnsafePickleError("it holds no value")
                return value
            self._do(code.name, argument)
        raise UnsafePickleError("it ends too early")

    def _do(self, name: str, argument: Any) -> None:
        stack = self._stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                stack.append(MARK)
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_TUPLE":
                stack.append(())
            case "APPEND":
                self._append([stack.pop()])
            case "APPENDS":
                self._append(self._since_mark())
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self._set([key, value])
            case "SETITEMS":
                self._set(self._since_mark())
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "GLOBAL":
                stack.append(_class_of(argument))
            case "STACK_GLOBAL":
                class_name, module = stack.pop(), stack.pop()
                stack.append(_class_of(f"{module} {class_name}"))
            case "NEWOBJ":
                arguments, cls = stack.pop(), stack.pop()
                if cls is not RECORD_CLASS or arguments != ():
                    raise UnsafePickleError("it makes something else than records")
                stack.append(Record())
            case "BUILD":
                fields, record = stack.pop(), stack[-1]
                if type(record) is not Record or type(fields) is not dict:
                    raise UnsafePickleError("it makes something else than records")
                record.update(fields)
            case _ if name in CONSTANTS:
                stack.append(argument)
            case _ if name in PUT:
                self._memo[argument] = stack[-1]
            case _ if name in GET:
                stack.append(self._memo[argument])
            case _:
                raise UnsafePickleError(f"it has the instruction {name}, which a sample has not")

    def _since_mark(self) -> list[Any]:
        """Take the values above the last mark, and the mark, from the stack."""
        items = []
        while (value := self._stack.pop()) is not MARK:
            items.append(value)
        return items[::-1]

    def _append(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise UnsafePickleError("it appends to something else than a list")
        target.extend(items)

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not dict or not all(type(key) is str for key in items[::2]):
            raise UnsafePickleError("it sets items of something else than a dict of strings")
        target.update(zip(items[::2], items[1::2], strict=True))


def _class_of(name: str) -> _RecordClass:
    if name not in RECORD_CLASSES:
        raise UnsafePickleError(f"it names {name.replace(' ', '.')!r}, which is not run")
    return RECORD_CLASS
