"""The one exception that is meant for the person at the terminal."""


class UserError(Exception):
    """Wrong input: the message says what is wrong, where, and what to do.

    The commands print it as one sentence and exit with code 2; every other
    exception is a bug and keeps its traceback.
    """
