"""The error for wrong input, and exit codes."""

JOINERS = "\u200c\u200d"  # which emoji and some scripts are written with
BUG, USER_ERROR, INTERRUPTED = 1, 2, 130  # exit codes


class UserError(Exception):
    """Wrong input: one sentence that says what is wrong, where, and what to do.

    The commands print it and exit with code 2; every other exception is a bug and keeps its
    traceback.
    """


def can_be_shown(text: str) -> bool:
    """Return whether a text is fit for a message: no control characters, no broken Unicode."""
    return all(character.isprintable() or character in JOINERS for character in text)
