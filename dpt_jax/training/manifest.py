"""The files of a checkpoint with their digests, which tell damage from other errors."""

import contextlib
import hashlib
import json
from collections.abc import Iterator

from etils import epath

from dpt_jax.errors import UserError

MANIFEST = "files.json"


class DamagedError(Exception):
    """A file of a checkpoint is missing, cut, or not what was written."""


def write(directory: epath.Path) -> None:
    """Write the manifest of a checkpoint whose items are complete."""
    found = {name: _describe(file) for name, file in _files(directory)}
    (directory / MANIFEST).write_text(json.dumps(found, indent=1))


def verify(directory: epath.Path, name: str) -> bool:
    """Return whether a checkpoint has a manifest; those of older versions have none.

    name: of the checkpoint, for the sentences. Raise DamagedError where a file is not what was
    written, and UserError where the file system does not let it be read.
    """
    try:
        if not (directory / MANIFEST).exists():
            return False
        _compare(directory, name)
    except OSError as reason:
        raise _unreadable(name, reason) from reason
    return True


@contextlib.contextmanager
def verified(directory: epath.Path, name: str) -> Iterator[None]:
    """Verify the files of a checkpoint; what fails within, with files that are whole, is no damage.

    name: see `verify`. Raise DamagedError where they are not, and UserError for any other failure
    to read them.
    """
    whole = verify(directory, name)
    try:
        yield
    except (DamagedError, UserError):
        raise
    except FileNotFoundError as reason:
        raise DamagedError(f"{name} is damaged ({_short(reason)})") from reason
    except MemoryError as reason:
        raise UserError(
            f"{name} cannot be read: there is too little memory; nothing was changed."
        ) from reason
    except OSError as reason:
        raise _unreadable(name, reason) from reason
    except Exception as reason:  # Orbax, TensorStore and JSON have types of their own
        known = (
            "its files are whole, so it was written by another version or for other settings"
            if whole
            else f"it has no {MANIFEST}, which would say whether it is damaged; to go "
            "on from the checkpoint before it, move it out of its folder"
        )
        raise UserError(
            f"{name} cannot be restored ({_short(reason)}): {known}. Nothing was changed."
        ) from reason


def _compare(directory: epath.Path, name: str) -> None:
    try:
        wanted = json.loads((directory / MANIFEST).read_bytes())
        items = {str(file): tuple(entry) for file, entry in wanted.items()}
    except (ValueError, AttributeError, TypeError) as reason:
        raise DamagedError(f"{name} is damaged ({MANIFEST} cannot be read)") from reason
    for file, entry in items.items():
        try:
            there = _describe(directory / file)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError) as reason:
            raise DamagedError(f"{name} is damaged ({file} is missing)") from reason
        if there != entry:
            raise DamagedError(f"{name} is damaged ({file} is not what was written)")


def _describe(file: epath.Path) -> tuple[int, str]:
    """Return the size of a file and its SHA-256."""
    content = file.read_bytes()
    return len(content), hashlib.sha256(content).hexdigest()


def _files(directory: epath.Path, prefix: str = "") -> Iterator[tuple[str, epath.Path]]:
    """Give the files of the items; Orbax may still change those that stand beside the items."""
    for path in sorted(directory.iterdir()):
        if path.is_dir():
            yield from _files(path, f"{prefix}{path.name}/")
        elif prefix:
            yield prefix + path.name, path


def _unreadable(name: str, reason: OSError) -> UserError:
    return UserError(f"{name} cannot be read ({_short(reason)}); nothing was changed.")


def _short(reason: BaseException) -> str:
    return " ".join(str(reason).split())[:200]
