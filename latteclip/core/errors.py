"""The one exception that users are meant to read, and parts of its sentences."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input or configuration: says what was wrong, where, and what to do.

    The command line prints it as one sentence, without a traceback, and exits with status 2.
    """


def suggestion(name: str, known: Iterable[str]) -> str:
    """The end of a sentence on a name that is unknown: the nearest right one, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]}?" if near else f"known are: {', '.join(names)}."


def first_line(error: BaseException) -> str:
    """Kind and first line of an error of a library."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
