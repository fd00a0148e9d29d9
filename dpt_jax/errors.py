"""The one exception that is meant for the person at the terminal, and what it can say."""

JOINERS = "\u200c\u200d"  # which emoji and some scripts are written with


class UserError(Exception):
    """Wrong input: the message says what is wrong, where, and what to do.

    The commands print it as one sentence and exit with code 2; every other
    exception is a bug and keeps its traceback.
    """


def can_be_shown(text: str) -> bool:
    """Return whether a text can stand in a message: no control characters, no broken Unicode."""
    return all(character.isprintable() or character in JOINERS for character in text)
