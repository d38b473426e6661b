"""The one exception that users are meant to read."""


class UserError(Exception):
    """Bad input or configuration: says what was wrong, where, and what to do.

    The command line prints it as one sentence, without a traceback, and exits with status 2.
    """
