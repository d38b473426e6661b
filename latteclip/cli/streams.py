"""Standard streams that are closed, full or read by nobody: no traceback, no lost output unsaid."""

import io
import os
import sys

from latteclip.core.errors import UserError, full_output


class ClosedOutput(io.TextIOBase):
    """In place of a standard output that is closed: writing is an error that says so."""

    def write(self, text: str) -> int:
        raise UserError("The standard output is closed; open it, or name a file for the output.")


def open_closed() -> None:
    """Take the numbers of closed streams, which the next file that is opened would get.

    A closed input is then empty, what goes to a closed stderr is lost, and a closed output refuses
    what is written.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # the lowest number that is free, hence this one
            os.open(os.devnull, os.O_RDWR)
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    if sys.stdout is None:
        sys.stdout = ClosedOutput()
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)


def flush_output() -> None:
    """Write what the standard output still holds back.

    Raises:
        UserError: it takes no more.
        BrokenPipeError: nobody reads it, as of `latteclip datasets | head`.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(full_output(error)) from None


def drop_unwritten() -> None:
    """Keep the interpreter's end from writing once more what could not be written."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
