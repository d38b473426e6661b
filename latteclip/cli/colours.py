"""Colour where a person reads: on a terminal, unless NO_COLOR says otherwise (no-color.org)."""

import logging
import os
from typing import TextIO

from latteclip.core.foreign import shown

CODES = {"red": "31", "green": "32", "yellow": "33", "bold": "1"}


def wanted(stream: TextIO) -> bool:
    """Whether text on `stream` may have colours."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and stream.isatty()


def paint(text: str, colour: str, stream: TextIO) -> str:
    """`text` in a colour of CODES where `stream` may have it, else as it is."""
    return f"\033[{CODES[colour]}m{text}\033[0m" if wanted(stream) else text


class Formatter(logging.Formatter):
    """Messages alone, coloured by level; a traceback only where it is asked for.

    What no terminal may obey is spelt out, and secrets are left out: see `foreign.shown`.

    A formatter that adds a traceback leaves it in the record for the next one, hence the copy.
    """

    def __init__(self, stream: TextIO | None, *, tracebacks: bool) -> None:
        """stream: where the messages go; None for a file, which has no colours."""
        super().__init__("%(message)s")
        self.stream, self.tracebacks = stream, tracebacks

    def format(self, record: logging.LogRecord) -> str:
        record = logging.makeLogRecord(record.__dict__)
        record.exc_text = None
        if not self.tracebacks:
            record.exc_info = None
        text = shown(super().format(record))
        if self.stream is None or record.levelno < logging.WARNING:
            return text
        return paint(text, "red" if record.levelno >= logging.ERROR else "yellow", self.stream)
