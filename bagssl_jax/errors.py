"""The one exception that is the user's to mend."""


class InputError(ValueError):
    """Something the user gave is wrong. The message says in one line what, and what to do.

    Entry points print it on standard error, without a traceback, and exit with status 2.
    """
